//! Who reads the replies of a manager's connection, under every interleaving: no future that waits for a reply is
//! forgotten.
//!
//! The file with the protocol is included here as it is. Around it stands what `client.rs` does with it, in small: two
//! futures of one executor, the background thread, and a server that answers. The background thread's watch never ends
//! by itself here, so that a wake-up that is lost is a deadlock, which loom reports; except in the models of a broken
//! promise, which is what the watch is for.

use std::collections::BTreeMap;

use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;

#[path = "../../executor/src/manager/lead.rs"]
mod lead;

use lead::{Background, Lead, Next};

/// The connection: how many replies have come, in the order of the calls, and how many were read. The bell is what the
/// reader sleeps at.
struct World {
    come: Mutex<u64>,
    bell: Condvar,
    state: Mutex<State>,
    reading: Condvar,
    /// Which futures are to be polled, and who waits for one.
    ready: Mutex<[bool; 2]>,
    executor: Condvar,
    watch: Watch,
}

/// For how long the background thread watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Until it is woken.
    Always,
    /// For a while.
    Awhile,
    /// For a while, in which a call of another task is sent.
    AmidCalls,
}

struct State {
    /// The reader: how many replies were read. In its place while nobody has it.
    reader: Option<u64>,
    /// For each call without a reply whether it was polled.
    pending: BTreeMap<u64, bool>,
    lead: Lead,
    /// Looking in vain was done before.
    waited: bool,
    closed: bool,
}

impl World {
    fn new(credit: i32, watch: Watch) -> Arc<Self> {
        let state =
            State { reader: Some(0), pending: BTreeMap::new(), lead: Lead::new(credit), waited: false, closed: false };
        Arc::new(World {
            come: Mutex::new(0),
            bell: Condvar::new(),
            state: Mutex::new(state),
            reading: Condvar::new(),
            ready: Mutex::new([true; 2]),
            executor: Condvar::new(),
            watch,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn wake(&self, id: u64) {
        self.ready.lock().unwrap()[id as usize - 1] = true;
        self.executor.notify_one();
    }

    /// The server answers one call.
    fn answer(&self) {
        *self.come.lock().unwrap() += 1;
        self.bell.notify_one();
    }

    fn send(&self, id: u64) {
        let mut state = self.state();
        state.pending.insert(id, false);
        if state.lead.sent(true) {
            self.reading.notify_one();
        }
    }

    fn settle(&self, id: u64) {
        let mut state = self.state();
        if let Some(true) = state.pending.remove(&id) {
            state.lead.settled(id);
        }
        drop(state);
        self.wake(id);
    }

    fn rest(&self, mut state: MutexGuard<'_, State>) {
        let pending = state.pending.len();
        let next = state.lead.rest(pending);
        if next.future.is_some() {
            state.waited = false;
        }
        drop(state);
        self.tell(next);
    }

    fn tell(&self, next: Next) {
        if next.background {
            self.reading.notify_one();
        }
        if let Some(id) = next.future {
            self.wake(id);
        }
    }

    /// A poll. Whether the call has its reply.
    fn poll(&self, id: u64) -> bool {
        let mut state = self.state();
        let State { pending, lead, reader, .. } = &mut *state;
        let Some(polled) = pending.get_mut(&id) else { return true };
        if !std::mem::replace(polled, true) {
            lead.polled(id);
        }
        if !lead.looks(id, reader.is_none()) {
            return false;
        }
        let mut read = reader.take().unwrap();
        drop(state);
        let before = read;
        while read < *self.come.lock().unwrap() {
            read += 1;
            self.settle(read);
        }
        let mut state = self.state();
        if read > before {
            state.lead.found();
            state.waited = false;
        }
        state.reader = Some(read);
        if !state.pending.contains_key(&id) {
            self.rest(state);
            return true;
        }
        let late = std::mem::replace(&mut state.waited, true);
        let next = state.lead.looked(id, late);
        drop(state);
        self.tell(next);
        false
    }

    /// The future is dropped.
    fn forsake(&self, id: u64) {
        let mut state = self.state();
        let State { pending, lead, .. } = &mut *state;
        if let Some(polled) = pending.get_mut(&id)
            && std::mem::replace(polled, false)
        {
            lead.settled(id);
            if state.reader.is_some() {
                self.rest(state);
            }
        }
    }

    /// Polls what is to be polled until these calls have their replies. Futures of other calls are never polled again.
    fn run(&self, mut left: Vec<u64>) {
        while !left.is_empty() {
            let mut ready = self.ready.lock().unwrap();
            while !left.iter().any(|id| ready[*id as usize - 1]) {
                ready = self.executor.wait(ready).unwrap();
            }
            let woken = std::mem::take(&mut *ready);
            drop(ready);
            left.retain(|id| !woken[*id as usize - 1] || !self.poll(*id));
            thread::yield_now();
        }
    }

    fn background(&self) {
        let mut state = self.state();
        while !state.closed {
            state.lead.awake();
            let pending = if state.reader.is_some() { state.pending.len() } else { 0 };
            match state.lead.background(pending) {
                Background::Watch if self.watch != Watch::Always => {
                    drop(state);
                    thread::yield_now();
                    state = self.state();
                    if self.watch == Watch::AmidCalls {
                        // It has its reply at once, or none ever; nobody here waits for it.
                        let _ = state.lead.sent(true);
                    }
                }
                Background::Watch | Background::Sleep => state = self.reading.wait(state).unwrap(),
                Background::Listen => {
                    let mut read = state.reader.take().unwrap();
                    drop(state);
                    loop {
                        let mut come = self.come.lock().unwrap();
                        while *come == read {
                            come = self.bell.wait(come).unwrap();
                        }
                        drop(come);
                        read += 1;
                        self.settle(read);
                        if *self.come.lock().unwrap() == read {
                            break;
                        }
                    }
                    let mut state = self.state();
                    state.reader = Some(read);
                    self.rest(state);
                    return self.background();
                }
            }
        }
    }

    fn close(&self) {
        self.state().closed = true;
        self.reading.notify_one();
    }
}

/// Runs two calls. `play` is the executor's part.
fn model(credit: i32, watch: Watch, play: fn(&World)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let world = World::new(credit, watch);
        let background = {
            let world = world.clone();
            thread::spawn(move || world.background())
        };
        world.send(1);
        world.send(2);
        let server = {
            let world = world.clone();
            thread::spawn(move || {
                world.answer();
                world.answer();
            })
        };
        play(&world);
        server.join().unwrap();
        world.close();
        background.join().unwrap();
    });
}

#[test]
fn futures_that_come_back_get_their_replies() {
    model(16, Watch::Always, |world| world.run(vec![1, 2]));
}

#[test]
fn futures_that_are_polled_in_any_order_get_their_replies() {
    // The first one to be answered is the last one to be polled, and finds its reply while the other one sleeps.
    model(16, Watch::Always, |world| world.run(vec![2, 1]));
    model(0, Watch::Always, |world| world.run(vec![2, 1]));
}

#[test]
fn futures_that_never_come_back_get_their_replies() {
    model(0, Watch::Always, |world| world.run(vec![1, 2]));
}

#[test]
fn a_future_that_is_dropped_hands_its_promise_on() {
    model(16, Watch::Always, |world| {
        // Both are polled once; the first one promises, if nothing has come.
        let (one, two) = (world.poll(1), world.poll(2));
        if !one {
            world.forsake(1);
        }
        if !two {
            world.run(vec![2]);
        }
    });
}

#[test]
fn a_promise_that_is_not_kept_is_noticed() {
    for watch in [Watch::Awhile, Watch::AmidCalls] {
        model(16, watch, |world| {
            let (_, two) = (world.poll(1), world.poll(2));
            if !two {
                world.run(vec![2]);
            }
        });
    }
}

// What takes no interleaving.

#[test]
fn a_background_thread_that_sleeps_is_woken_by_whatever_is_to_be_read() {
    let mut lead = Lead::new(16);
    assert_eq!(lead.background(0), Background::Sleep);
    assert!(lead.sent(true), "a call that nobody has polled");
    lead.awake();
    assert_eq!((lead.background(1), lead.background(0)), (Background::Watch, Background::Sleep));
    lead.polled(1);
    // It watches whether the future keeps the promise.
    assert_eq!(lead.rest(1), Next { background: true, future: Some(1) });
    lead.awake();
    assert_eq!((lead.background(1), lead.background(1)), (Background::Watch, Background::Listen));
}

/// What the background thread does while calls are sent and polled in each of its watches, until it listens.
fn watches_amid_calls(lead: &mut Lead, polled: bool) -> usize {
    let mut watches = 0;
    for id in 2..1_000 {
        lead.awake();
        match lead.background(1) {
            Background::Watch => watches += 1,
            Background::Listen => break,
            Background::Sleep => panic!("it sleeps, and a call is pending"),
        }
        let _ = lead.sent(true);
        if polled {
            lead.polled(id);
            assert!(!lead.looks(id, false), "another one has promised");
        }
    }
    watches
}

#[test]
fn calls_that_keep_coming_do_not_put_off_what_others_wait_for() {
    // One that was nudged, and whose task is busy.
    let mut lead = Lead::new(16);
    lead.polled(1);
    assert_eq!(lead.rest(1).future, Some(1));
    assert_eq!(watches_amid_calls(&mut lead, true), 1);

    // One that has promised by itself.
    let mut lead = Lead::new(16);
    assert!(!lead.sent(true));
    lead.polled(1);
    assert!(lead.looks(1, false));
    assert_eq!(lead.looked(1, false).future, Some(1));
    assert_eq!(watches_amid_calls(&mut lead, true), 1);

    // No future was polled at all, and what they have asked for fills the connection.
    let mut lead = Lead::new(16);
    assert!(!lead.sent(true));
    assert_eq!(watches_amid_calls(&mut lead, false), 1);

    // But where somebody looks, the background thread stays away.
    let mut lead = Lead::new(16);
    for id in 1..100 {
        assert!(!lead.sent(true));
        lead.polled(id);
        assert!(lead.looks(id, false));
        lead.found();
        lead.settled(id);
        assert_eq!(lead.background(1), Background::Watch);
    }
}

#[test]
fn without_credit_the_background_thread_listens() {
    let mut lead = Lead::new(0);
    lead.polled(1);
    assert_eq!(lead.rest(1), Next { background: true, future: None });
    assert_eq!(lead.background(1), Background::Listen);
    assert!(lead.sent(false), "futures don't look");
    assert_eq!(lead.background(1), Background::Listen);

    // What takes too long for a future is for the background thread, whatever the credit; which stays.
    let mut lead = Lead::new(16);
    lead.polled(1);
    assert!(lead.looks(1, false));
    assert_eq!(lead.passed(), Next { background: true, future: None });
    assert_eq!(lead.background(1), Background::Listen);
    assert!(lead.rest(1).future.is_some());

    let mut lead = Lead::new(16);
    lead.polled(1);
    let in_vain = (0..100).take_while(|_| lead.rest(1).future.is_some() && !lead.looked(1, true).background).count();
    assert_eq!(in_vain, 0, "who is late doesn't promise");
    let promises = (0..100).filter(|_| lead.looked(1, false).future.is_some()).count();
    lead.found();
    assert!(promises > 0 && lead.looked(1, false).future.is_some(), "{promises}");
}
