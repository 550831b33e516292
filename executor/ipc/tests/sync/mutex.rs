//! `Mutex`: one at a time, whoever dies.

use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

use polypool_ipc::{Lock, LockError, Mutex, MutexGuard, Semaphore, pack, unpack};

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, wait_for};

pub(crate) const ROLES: &[crate::Role] =
    &[("mutex: add", add), ("mutex: add for ever", add_for_ever), ("mutex: hold", hold), ("mutex: wait", wait)];

const WORDS: usize = 200;
type Words = [u64; WORDS];

/// The total, and what each of three has added to it.
type Tally = [u64; 4];

fn add(parent: &Peer) {
    let (counter, times): (Mutex<u64>, u64) = parent.recv();
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| (0..times).for_each(|_| *counter.lock().unwrap() += 1));
        }
    });
}

#[test]
fn all_increments_of_threads_tasks_and_processes_are_there() {
    in_time(|| {
        const TIMES: u64 = 5_000;
        let counter = Mutex::new(0_u64).unwrap();
        let children: Vec<_> = (0..2).map(|_| child("mutex: add", &(&counter, TIMES))).collect();
        let tasks = async {
            for _ in 0..TIMES {
                *counter.lock_async().await.unwrap() += 1;
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| (0..TIMES).for_each(|_| *counter.lock().unwrap() += 1));
            wait_for(tasks);
        });
        children.into_iter().for_each(|child| child.join());
        assert_eq!(*counter.lock().unwrap(), 6 * TIMES);
    });
}

fn hold(parent: &Peer) {
    let words: Mutex<Words> = parent.recv();
    let mut guard = words.lock().unwrap_or_else(|error| error.into_guard().unwrap());
    guard.fill(2);
    guard.commit();
    guard[..WORDS / 2].fill(3);
    parent.send("held");
    parent.recv::<()>();
}

#[test]
fn after_a_death_the_next_ones_learn_who_died_and_find_the_last_commit() {
    in_time(|| {
        let words = Mutex::new([1_u64; WORDS]).unwrap();
        let mut holder = child("mutex: hold", &words);
        holder.expect("held");
        assert!(matches!(words.try_lock(), Err(LockError::WouldBlock)));
        assert!(matches!(words.lock_timeout(MOMENT), Err(LockError::TimedOut)));
        holder.kill();

        let died = |result: Result<MutexGuard<'_, Words>, LockError<MutexGuard<'_, Words>>>| match result {
            Err(LockError::Poisoned { pid, guard }) => {
                assert_eq!(pid, Some(holder.id()));
                assert_eq!(*guard, [2; WORDS], "torn, or not the last commit");
            }
            other => panic!("{other:?}"),
        };
        died(words.lock());
        // For all, until somebody repairs it.
        died(words.try_lock());
        died(words.lock_timeout(MOMENT));
        died(wait_for(words.lock_async()));
        assert!(words.is_poisoned());
        let error = words.with(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), format!("process {} died while it held the lock", holder.id()));
        let mut guard = words.lock().unwrap_err().into_guard().unwrap();
        guard.fill(4);
        guard.repair();
        drop(guard);
        assert_eq!(*words.lock().unwrap(), [4; WORDS]);
        assert!(!words.is_poisoned());
    });
}

fn wait(parent: &Peer) {
    let words: Mutex<Words> = parent.recv();
    parent.send("waiting");
    let mut guard = words.lock().unwrap_err().into_guard().unwrap();
    assert_eq!(*guard, [2; WORDS]);
    guard.commit();
    drop(guard);
    parent.send("was in");
}

#[test]
fn all_waiters_of_a_dead_holder_get_their_turn() {
    in_time(|| {
        let words = Mutex::new([1_u64; WORDS]).unwrap();
        let mut holder = child("mutex: hold", &words);
        holder.expect("held");
        let waiters: Vec<_> = (0..2).map(|_| child("mutex: wait", &words)).collect();
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..3).map(|_| s.spawn(|| words.lock().is_err())).collect();
            let mut future = pin!(words.lock_async());
            assert!(poll_once(future.as_mut()).is_pending());
            waiters.iter().for_each(|waiter| waiter.expect("waiting"));
            holder.kill();
            assert!(matches!(wait_for(future), Err(LockError::Poisoned { .. })));
            waiters.iter().for_each(|waiter| waiter.expect("was in"));
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()), "somebody wasn't told");
        });
        waiters.into_iter().for_each(|waiter| waiter.join());
    });
}

fn add_for_ever(parent: &Peer) {
    let (tally, me): (Mutex<Tally>, usize) = parent.recv();
    parent.send("ready");
    loop {
        let mut guard = match tally.lock() {
            Ok(guard) => guard,
            Err(LockError::Poisoned { mut guard, .. }) => {
                guard.repair();
                guard
            }
            Err(_) => unreachable!(),
        };
        guard[0] += 1;
        assert_eq!(guard[0] - 1, guard[1..].iter().sum::<u64>(), "torn");
        guard[me] += 1;
    }
}

#[test]
fn only_completed_increments_count_whoever_is_killed() {
    in_time(|| {
        let tally = Mutex::new(Tally::default()).unwrap();
        let mut last = 0;
        let start = |me: usize| {
            let it = child("mutex: add for ever", &(&tally, me));
            it.expect("ready");
            it
        };
        let mut adders = [start(1), start(2), start(3)];
        for round in 0..40_usize {
            // They get somewhere, and then one is killed wherever it is.
            loop {
                let guard = tally.lock().or_else(|error| error.into_guard().ok_or(())).unwrap();
                assert_eq!(guard[0], guard[1..].iter().sum::<u64>(), "torn");
                if guard[0] > last {
                    last = guard[0];
                    break;
                }
            }
            let victim = round % 3;
            adders[victim].kill();
            if round % 4 == 0 {
                adders[victim] = start(victim + 1);
            } else {
                let at = (victim + 1) % 3;
                adders[at].kill();
                adders[victim] = start(victim + 1);
                adders[at] = start(at + 1);
            }
        }
    });
}

#[test]
fn a_panic_and_a_rollback_undo_what_was_not_committed() {
    in_time(|| {
        let pair = Mutex::new([1_u32, 2]).unwrap();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pair.with(|pair| {
                pair[0] = 9;
                panic!("in the middle");
            })
        }));
        assert!(panic.is_err());
        let mut guard = pair.lock().unwrap();
        assert_eq!(*guard, [1, 2]);
        guard[0] = 3;
        guard.commit();
        guard[1] = 4;
        guard.rollback();
        assert_eq!(*guard, [3, 2]);
        drop(guard);
        assert_eq!(*pair.lock().unwrap(), [3, 2]);
    });
}

#[test]
fn a_guard_can_end_in_another_thread() {
    in_time(|| {
        let lock = Lock::new(()).unwrap();
        let guard = lock.lock().unwrap();
        assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
        std::thread::scope(|s| s.spawn(move || drop(guard)).join().unwrap());
        drop(lock.try_lock().unwrap());
    });
}

#[test]
fn many_tasks_on_one_thread_take_turns() {
    let counter = Mutex::new(0_u64).unwrap();
    on_one_thread(async {
        let local = tokio::task::LocalSet::new();
        for _ in 0..300 {
            let counter = counter.clone();
            local.spawn_local(async move {
                for _ in 0..3 {
                    let mut guard = counter.lock_async().await.unwrap();
                    // Held while others run.
                    tokio::task::yield_now().await;
                    *guard += 1;
                }
            });
        }
        local.await;
    });
    assert_eq!(*counter.lock().unwrap(), 900);
}

#[test]
fn dropped_futures_take_no_wake_up_with_them() {
    in_time(|| {
        let lock = Lock::new(()).unwrap();
        for round in 0..300 {
            let guard = lock.lock().unwrap();
            let (mut one, mut two, mut three) =
                (Box::pin(lock.lock_async()), Box::pin(lock.lock_async()), Box::pin(lock.lock_async()));
            for future in [&mut one, &mut two, &mut three] {
                assert!(poll_once(future.as_mut()).is_pending());
            }
            // Before the wake-up, and after it, which one of them may have got.
            if round % 2 == 0 {
                drop(one);
                drop(guard);
                drop(two);
            } else {
                drop(guard);
                drop((one, two));
            }
            drop(wait_for(three).unwrap());
        }
    });
}

#[test]
fn a_blocked_thread_is_woken_though_a_future_was_dropped() {
    in_time(|| {
        let lock = Lock::new(()).unwrap();
        for _ in 0..100 {
            let guard = lock.lock().unwrap();
            let mut future = Box::pin(lock.lock_async());
            assert!(poll_once(future.as_mut()).is_pending());
            let (about_to, waits) = mpsc::channel();
            std::thread::scope(|s| {
                s.spawn(|| {
                    about_to.send(()).unwrap();
                    drop(lock.lock().unwrap());
                });
                waits.recv().unwrap();
                drop(guard);
                drop(future);
            });
        }
    });
}

#[test]
fn a_handle_is_opened_as_what_it_is_or_not_at_all() {
    let lock = Mutex::new(7_u64).unwrap();
    let (bytes, luggage) = pack(|| serde_json::to_vec(&lock));
    let bytes = bytes.unwrap();
    let same: Mutex<u64> = unpack(&luggage, || serde_json::from_slice(&bytes)).unwrap();
    assert!(same.is_same(&lock));
    assert_eq!(*same.lock().unwrap(), 7);
    assert!(unpack(&luggage, || serde_json::from_slice::<Mutex<u32>>(&bytes)).is_err());
    assert!(unpack(&luggage, || serde_json::from_slice::<Semaphore>(&bytes)).is_err());
    assert!(serde_json::to_vec(&lock).is_err(), "a handle isn't bytes");
}

#[test]
fn a_timeout_beyond_the_clock_is_for_ever() {
    in_time(|| drop(Lock::new(()).unwrap().lock_timeout(Duration::MAX).unwrap()));
}

#[test]
fn work_under_the_lock_has_all_forms() {
    in_time(|| {
        let lock = Mutex::new(1_u64).unwrap();
        let guard = lock.lock().unwrap();
        assert!(matches!(lock.try_with(|v| *v = 9), Err(LockError::WouldBlock)));
        assert!(matches!(lock.with_timeout(MOMENT, |v| *v = 9), Err(LockError::TimedOut)));
        assert!(poll_once(std::pin::pin!(lock.with_async(|v| *v = 9))).is_pending());
        drop(guard);
        assert_eq!(lock.try_with(|v| std::mem::replace(v, 2)).unwrap(), 1);
        assert_eq!(lock.with_timeout(MOMENT, |v| std::mem::replace(v, 3)).unwrap(), 2);
        assert_eq!(wait_for(lock.with_async(|v| std::mem::replace(v, 4))).unwrap(), 3);
        assert_eq!(lock.with(|v| *v).unwrap(), 4);
    });
}
