//! Who looks for work, and who could: the two counters by which a pool wakes neither too many workers nor too few.
//!
//! A wake-up costs a hundred times as much as a small task, so it is avoided where it can be. A worker *searches* from
//! the moment it has nothing to do until it has found a task or lies down. A worker is *spare* if it lies down, or could
//! be started. Three rules:
//!
//! 1. Whoever pushes a task looks at the counters afterwards, and wakes a worker only when nobody searches and somebody is
//!    spare ([`Sleep::needs_wake`]).
//! 2. A worker that has found a task and was the last to search looks whether there is more to find, and then wakes the next
//!    one ([`Sleep::found`]). So a flood of tasks wakes the workers one by one, each woken by the one before, and a single
//!    task wakes one.
//! 3. A worker that lies down says so first and looks into the backlog once more afterwards ([`Sleep::lie_down`],
//!    [`Sleep::stand_up`]).
//!
//! **No wake-up is lost.** The backlog is behind a lock, and each look into it and each push is a critical section of that
//! lock; so of a push and a look, one comes first.
//!
//! * *The push first*: the look finds the task.
//! * *The look first*: what the looking worker did to the counters before (rules 2 and 3) happens before what the pushing
//!   thread reads in them afterwards (rule 1), because the one unlocks what the other locks. So the pushing thread doesn't
//!   count on that worker any more.
//!
//! A pushing thread that does count on a worker has read the counters before that worker changed them, so its push came before
//! the worker's last look. Whoever is to be woken is picked under the lock of the pool, which a worker holds from before it says
//! that it lies down until it is in the list of those who do. Nothing of this needs more than acquire and release, which the
//! locks bring along. `integration-tests/tests/loom_sleep.rs` runs it through all interleavings.
//!
//! **What is not promised**: that nobody is woken in vain. While no worker is spare, those who have done a task and
//! look for the next one don't count as searching, as nobody would read it (which saves two contended steps a task). If
//! another one lies down just then, a push may wake that one although the first is about to look.

use super::sync::{AtomicUsize, Ordering};

/// The counters.
#[derive(Debug)]
pub(crate) struct Sleep {
    searching: AtomicUsize,
    spare: AtomicUsize,
}

impl Sleep {
    pub(crate) fn new(spare: usize) -> Self {
        Sleep { searching: AtomicUsize::new(0), spare: AtomicUsize::new(spare) }
    }

    /// After a push: whether a worker is to be woken or started, if the lock of the pool shows one.
    pub(crate) fn needs_wake(&self) -> bool {
        self.has_spare() && self.searching() == 0
    }

    pub(crate) fn has_spare(&self) -> bool {
        self.spare.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn searching(&self) -> usize {
        self.searching.load(Ordering::Relaxed)
    }

    /// So many workers search now, besides those who did.
    pub(crate) fn search(&self, workers: usize) {
        self.searching.fetch_add(workers, Ordering::Relaxed);
    }

    /// A worker does not search any more. `true`: it was the last one, so it has to look whether there is more to find.
    #[must_use = "there may be more to find, and nobody who looks for it"]
    pub(crate) fn found(&self) -> bool {
        self.searching.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// So many workers are spare now. Under the lock of the pool.
    pub(crate) fn set_spare(&self, workers: usize) {
        self.spare.store(workers, Ordering::Relaxed);
    }

    /// A searching worker is about to lie down, as one of so many spare ones. Under the lock of the pool; what follows
    /// under the same lock is a look into the backlog, and `stand_up` if there is something.
    pub(crate) fn lie_down(&self, spare: usize) {
        self.set_spare(spare);
        self.searching.fetch_sub(1, Ordering::Relaxed);
    }

    /// There was something: the worker searches as before.
    pub(crate) fn stand_up(&self, spare: usize) {
        self.search(1);
        self.set_spare(spare);
    }
}
