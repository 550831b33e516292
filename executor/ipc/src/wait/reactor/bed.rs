//! What one thread sleeps for: the futures that wait for words, and one turn of the sleep for all of them.
//!
//! Everything it stands on, atomics, locks and the kernel, comes from the parent module, so that the very same file
//! runs over loom's in `tests/loom_reactor.rs`. Why no wake-up is lost stands at the head of `reactor.rs`.

use std::sync::PoisonError;
use std::task::Waker;
use std::time::Duration;

use super::{Arc, AtomicBool, AtomicU32, Change, Mutex, Ordering, Word, after, futex, generation};

/// How long a thread sleeps for nobody. (It is woken for everything; this is only so that the number is finite.)
const IDLE: Duration = Duration::from_secs(3600);

/// A future that waits.
pub(crate) struct Sleeper {
    pub(crate) id: u64,
    pub(crate) change: Change,
    pub(crate) waker: Waker,
    /// Whether it has been woken. Changed under the lock of the sleepers, so that whoever isn't among them knows.
    pub(crate) over: Arc<AtomicBool>,
}

/// What one thread sleeps for.
#[derive(Default)]
pub(crate) struct Bed {
    sleepers: Mutex<Vec<Sleeper>>,
    doorbell: AtomicU32,
}

impl Bed {
    /// Enters a future, if it has no more words than there is room for.
    pub(crate) fn enter(&self, sleeper: &mut Option<Sleeper>, most: usize) -> bool {
        {
            let words = |sleeper: &Sleeper| 1 + sleeper.change.holders.len();
            let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            if sleepers.iter().chain(sleeper.iter()).map(words).sum::<usize>() > most {
                return false;
            }
            sleepers.extend(sleeper.take());
        }
        self.ring();
        true
    }

    /// Whether the future has been woken; if not, `waker` is the one to wake.
    pub(crate) fn is_over(&self, id: u64, waker: &Waker) -> bool {
        // A waker's clone and its drop are code of others, which may come back here, as the drop of a task with another
        // future in it does. So neither runs under the lock.
        let mut new = None;
        loop {
            let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(sleeper) = sleepers.iter_mut().find(|sleeper| sleeper.id == id) else { return true };
            if sleeper.waker.will_wake(waker) {
                return false;
            }
            if let Some(new) = new.take() {
                let old = std::mem::replace(&mut sleeper.waker, new);
                drop(sleepers);
                drop(old);
                return false;
            }
            drop(sleepers);
            new = Some(waker.clone());
        }
    }

    /// The future waits no more.
    pub(crate) fn leave(&self, id: u64) {
        let gone: Vec<Sleeper> = {
            let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            sleepers.extract_if(.., |sleeper| sleeper.id == id).collect()
        };
        // A waker's drop is code of others.
        drop(gone);
    }

    pub(crate) fn ring(&self) {
        self.doorbell.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.doorbell);
    }

    /// Sleeps once, and wakes those for whom something may have changed; with `all`, everybody.
    pub(crate) fn turn(&self, all: impl FnOnce() -> bool) {
        let heard = self.doorbell.load(Ordering::SeqCst);
        let words: Vec<(Word, u32)> = {
            let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            sleepers
                .iter()
                .flat_map(|sleeper| std::iter::once(&sleeper.change.word).chain(&sleeper.change.holders).cloned())
                .collect()
        };
        let mut watched = vec![(&self.doorbell, heard)];
        watched.extend(words.iter().map(|(word, value)| (word.get(), *value)));
        let woken = match futex::wait_any(&watched, if words.is_empty() { IDLE } else { futex::RECHECK }) {
            Ok(index) => index.checked_sub(1),
            Err(error) if futex::is_unavailable(error) => {
                // An old kernel: short sleeps at the doorbell, and a look at the rest.
                let longest = if words.is_empty() { None } else { after(Duration::from_millis(5)) };
                futex::wait(&watched[..1], longest);
                None
            }
            Err(_) => None,
        };
        if all() {
            self.wake(|_| true);
        }
        // What has changed, and what the kernel named; it names one, though it may have been woken by several.
        let changed = |index: usize| {
            let (word, value) = &words[index];
            woken == Some(index) || word.get().load(Ordering::SeqCst) != *value
        };
        let mut unmet: Vec<&AtomicU32> =
            (0..words.len()).filter(|index| changed(*index)).map(|index| words[index].0.get()).collect();
        let named = woken.map(|index| words[index].0.get());
        self.wake(|change| {
            let is = |one: &AtomicU32, other: Option<&AtomicU32>| other.is_some_and(|other| std::ptr::eq(one, other));
            let wakes = change.has_come() || change.pairs().any(|(word, _)| is(word, named));
            if wakes {
                unmet.retain(|unmet| !change.pairs().any(|(word, _)| is(word, Some(unmet))));
            }
            wakes
        });
        for word in unmet {
            // The future that we slept for has been dropped meanwhile, or knows the change already.
            futex::wake(word, 1);
        }
    }

    /// Wakes the futures for which that is true.
    pub(crate) fn wake(&self, mut which: impl FnMut(&Change) -> bool) {
        let woken: Vec<Sleeper> = {
            let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            let woken = sleepers.extract_if(.., |sleeper| which(&sleeper.change));
            // Before the lock is given back: a future that is dropped right now and isn't found must know that it has
            // been woken, to pass that on.
            woken.inspect(|sleeper| sleeper.over.store(true, Ordering::Release)).collect()
        };
        // Outside of the lock: a waker runs code of others, and what it drops may come back here.
        for sleeper in woken {
            // A waker that panics is its runtime's fault, and must not end the thread on which the presence of the
            // process hangs.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sleeper.waker.wake()));
        }
    }
}

/// One sleep of a future.
pub(crate) struct Sleep {
    pub(crate) id: u64,
    pub(crate) bed: Option<Arc<Bed>>,
    pub(crate) over: Arc<AtomicBool>,
    pub(crate) word: Word,
    pub(crate) used: bool,
    /// By how many forks this process came to be; those of another number are slept by a thread of the parent.
    pub(crate) forks: u32,
}

impl Sleep {
    /// Whether the change may have come; if not, `waker` is the one to wake.
    pub(crate) fn is_over(&self, waker: &Waker) -> bool {
        self.over.load(Ordering::Acquire) || self.bed().is_none_or(|bed| bed.is_over(self.id, waker))
    }

    /// `None` also in a forked child, where nobody sleeps in it, and its lock may be held for ever.
    fn bed(&self) -> Option<&Bed> {
        self.bed.as_deref().filter(|_| self.forks == generation())
    }

    /// The future has looked again, so the wake-up has done its work.
    pub(crate) fn used(mut self) {
        self.used = true;
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(bed) = self.bed() {
            bed.leave(self.id);
        }
        if !self.used && self.over.load(Ordering::Acquire) {
            // Dropped between the wake-up and the look: somebody else is to have it.
            futex::wake(self.word.get(), 1);
        }
    }
}
