//! What has been accepted and not started: one FIFO lane for each priority, and the room there is.
//!
//! [`Lanes`] is plain data under the lock of its pool. [`Room`] counts what waits when a limit is set; a task gives its
//! place back when it starts, when it is cancelled, and when it is rejected, because the permit is kept in its cell.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::error::SubmitError;
use crate::executor::Slot;
use crate::options::Priority;
use crate::state::{self, Call};

/// The waiting calls.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: [VecDeque<Call>; Priority::COUNT],
    len: usize,
    sweeper: Sweeper,
    /// Whether a call was put back that nobody has come for since.
    has_returned: bool,
    /// How many cancelled calls were forgotten.
    swept: u64,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Lanes { lanes: Default::default(), len: 0, sweeper: Sweeper::new(), has_returned: false, swept: 0 }
    }

    /// How many calls are held, those included that were cancelled since.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tasks still wait.
    pub(crate) fn live(&self) -> usize {
        self.lanes.iter().flatten().map(|call| call.cell().queued()).sum()
    }

    /// How many tasks were cancelled here and forgotten, so that no worker has met them.
    pub(crate) fn swept(&self) -> u64 {
        self.swept
    }

    /// Whether something is to go before what those have that run several tasks.
    pub(crate) fn is_urgent(&self) -> bool {
        self.has_returned || !self.lanes[Priority::High.lane()].is_empty()
    }

    pub(crate) fn push(&mut self, call: Call) {
        self.sweep();
        self.lanes[call.priority().lane()].push_back(call);
        self.len += 1;
    }

    /// All of these, in their order; none is left. `mixed`: their priorities differ from the normal one.
    pub(crate) fn append(&mut self, calls: &mut VecDeque<Call>, mixed: bool) {
        let normal = &mut self.lanes[Priority::Normal.lane()];
        self.len += calls.len();
        if mixed {
            for call in calls.drain(..) {
                self.lanes[call.priority().lane()].push_back(call);
            }
        } else if normal.is_empty() {
            std::mem::swap(normal, calls);
        } else {
            normal.append(calls);
        }
        self.sweep();
    }

    /// For a call that had been taken out before: it keeps its turn.
    pub(crate) fn push_front(&mut self, call: Call) {
        self.lanes[call.priority().lane()].push_front(call);
        self.len += 1;
        self.has_returned = true;
    }

    pub(crate) fn pop(&mut self) -> Option<Call> {
        self.has_returned = false;
        if self.len == 0 {
            return None;
        }
        for lane in &mut self.lanes {
            while let Some(call) = lane.front() {
                if !call.cell().is_shared() {
                    self.len -= 1;
                    return lane.pop_front();
                }
                let cell = call.cell().clone();
                let visit = cell.visit();
                if visit.stays {
                    return Some(Call::new(cell));
                }
                self.len -= 1;
                // It was told that it has left.
                let own = lane.pop_front().map(Call::into_cell);
                if visit.has_work {
                    return own.map(Call::new);
                }
            }
        }
        None
    }

    /// Everything there is, in the order of its turn.
    pub(crate) fn take_all(&mut self) -> Vec<Call> {
        self.len = 0;
        let calls: Vec<Call> = self.lanes.iter_mut().flat_map(std::mem::take).collect();
        for call in &calls {
            call.cell().leave_backlog();
        }
        calls
    }

    fn sweep(&mut self) {
        if self.sweeper.is_due(self.len) {
            for lane in &mut self.lanes {
                self.swept += forget_ended(lane);
            }
            self.len = self.lanes.iter().map(VecDeque::len).sum();
        }
    }
}

/// Forgets the calls that wait no more. How many of those were tasks that count as skipped.
pub(crate) fn forget_ended(calls: &mut VecDeque<Call>) -> u64 {
    let mut skipped = 0;
    calls.retain_mut(|call| {
        let counts_itself = call.cell().is_shared();
        let is_alive = call.is_alive();
        skipped += u64::from(!is_alive && !counts_itself);
        is_alive
    });
    skipped
}

/// Says when to forget cancelled calls: when they may be half of a queue, so that a stuck worker does not let them pile up.
/// Each is looked at a constant number of times, on average, and where nothing is cancelled nothing is looked at. (Their
/// arguments went when they were cancelled.)
#[derive(Debug)]
pub(crate) struct Sweeper {
    /// How many calls of this process had been cancelled at the last sweep.
    before: u64,
}

/// Below this number, cancelled calls are not worth looking for.
const SWEEP_MIN: usize = 512;

impl Sweeper {
    pub(crate) fn new() -> Self {
        Sweeper { before: state::ended_while_queued() }
    }

    /// Whether a queue of this length is to be swept now.
    pub(crate) fn is_due(&mut self, len: usize) -> bool {
        if len < SWEEP_MIN {
            return false;
        }
        let ended = state::ended_while_queued();
        let due = ended - self.before >= (len / 2).max(SWEEP_MIN) as u64;
        if due {
            self.before = ended;
        }
        due
    }
}

/// The room in a backlog.
#[derive(Debug)]
pub(crate) struct Room {
    /// `None`: unbounded.
    bounded: Option<(Arc<Semaphore>, usize)>,
}

impl Room {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Room { bounded: limit.map(|limit| (Arc::new(Semaphore::new(limit)), limit)) }
    }

    /// The place of a call that is submitted: the one that was reserved for it, or one that is free now. `check` says
    /// whether the pool accepts work; it knows better than a closed room whether the pool is broken.
    pub(crate) fn admit(
        &self,
        slot: Option<Slot>,
        check: impl Fn() -> Result<(), SubmitError>,
    ) -> Result<Option<OwnedSemaphorePermit>, SubmitError> {
        match slot {
            Some(slot) => Ok(slot.permit),
            None => self.try_take().map_err(|error| check().err().unwrap_or(error)),
        }
    }

    /// A place to hold, if there is one now.
    pub(crate) fn try_reserve(&self, check: impl Fn() -> Result<(), SubmitError>) -> Result<Slot, SubmitError> {
        check()?;
        self.try_take().map(|permit| Slot { permit })
    }

    /// A place to hold, as soon as there is one.
    pub(crate) async fn reserve(&self, check: impl Fn() -> Result<(), SubmitError>) -> Result<Slot, SubmitError> {
        check()?;
        match self.take().await {
            Ok(permit) => Ok(Slot { permit }),
            Err(error) => Err(check().err().unwrap_or(error)),
        }
    }

    /// A place, if there is one; `Ok(None)` where none is needed.
    fn try_take(&self) -> Result<Option<OwnedSemaphorePermit>, SubmitError> {
        match &self.bounded {
            None => Ok(None),
            Some((semaphore, limit)) => match semaphore.clone().try_acquire_owned() {
                Ok(permit) => Ok(Some(permit)),
                Err(TryAcquireError::NoPermits) => Err(SubmitError::Full { limit: *limit }),
                Err(TryAcquireError::Closed) => Err(SubmitError::ShutDown),
            },
        }
    }

    /// A place, as soon as there is one. Fails when the room is closed meanwhile.
    async fn take(&self) -> Result<Option<OwnedSemaphorePermit>, SubmitError> {
        match &self.bounded {
            None => Ok(None),
            Some((semaphore, _)) => match semaphore.clone().acquire_owned().await {
                Ok(permit) => Ok(Some(permit)),
                Err(_) => Err(SubmitError::ShutDown),
            },
        }
    }

    /// Refuses everybody from now on, also those who wait.
    pub(crate) fn close(&self) {
        if let Some((semaphore, _)) = &self.bounded {
            semaphore.close();
        }
    }
}
