//! `ReentrantMutex`: the owner gets in again, and nobody else.

use polypool_ipc::{LockError, LockOwner, RLock, ReentrantMutex};

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, wait_for};

pub(crate) const ROLES: &[crate::Role] = &[("reentrant: add", add), ("reentrant: hold", hold)];

fn add_often(counter: &ReentrantMutex<u64>, times: u64) {
    for _ in 0..times {
        let outer = counter.lock().unwrap();
        let before = outer.get();
        counter.lock().unwrap().set(before + 1);
        counter.try_lock().unwrap().update(|n| n + 1);
        assert_eq!(outer.get(), before + 2);
    }
}

fn add(parent: &Peer) {
    let (counter, times): (ReentrantMutex<u64>, u64) = parent.recv();
    add_often(&counter, times);
}

#[test]
fn all_increments_of_all_owners_are_there() {
    in_time(|| {
        const TIMES: u64 = 2_000;
        let counter = ReentrantMutex::new(0_u64).unwrap();
        let children: Vec<_> = (0..2).map(|_| child("reentrant: add", &(&counter, TIMES))).collect();
        let task = async {
            let me = LockOwner::new();
            for _ in 0..TIMES {
                let outer = counter.lock_async(&me).await.unwrap();
                let inner = counter.lock_async(&me).await.unwrap();
                inner.set(outer.get() + 2);
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| add_often(&counter, TIMES));
            wait_for(task);
        });
        children.into_iter().for_each(|child| child.join());
        assert_eq!(counter.lock().unwrap().get(), 8 * TIMES);
    });
}

#[test]
fn it_is_free_when_the_last_guard_of_the_owner_is_gone() {
    in_time(|| {
        let lock = RLock::new(()).unwrap();
        let elsewhere = |lock: &RLock| {
            std::thread::scope(|s| {
                s.spawn(|| {
                    let result = lock.try_lock().map(drop).map_err(LockError::without_guard);
                    let timed = lock.lock_timeout(MOMENT).map(drop).map_err(LockError::without_guard);
                    assert_eq!(matches!(result, Err(LockError::WouldBlock)), matches!(timed, Err(LockError::TimedOut)));
                    result.is_ok()
                })
                .join()
                .unwrap()
            })
        };
        let one = lock.lock().unwrap();
        let two = lock.lock_timeout(MOMENT).unwrap();
        let three = lock.try_lock().unwrap();
        drop(one);
        assert!(!elsewhere(&lock));
        drop(three);
        assert!(!elsewhere(&lock));
        drop(two);
        assert!(elsewhere(&lock));
    });
}

#[test]
fn tasks_of_one_thread_are_different_owners() {
    let counter = ReentrantMutex::new(0_u64).unwrap();
    on_one_thread(async {
        let tasks = (0..100).map(|_| async {
            let me = LockOwner::new();
            let outer = counter.lock_async(&me).await.unwrap();
            let before = outer.get();
            tokio::task::yield_now().await;
            let inner = counter.lock_async(&me).await.unwrap();
            inner.set(before + 1);
        });
        futures_util::future::join_all(tasks).await;
        let me = LockOwner::new();
        let mine = counter.lock_async(&me).await.unwrap();
        assert!(matches!(counter.try_lock(), Err(LockError::WouldBlock)), "the thread isn't the task");
        let other = LockOwner::new();
        let mut others = Box::pin(counter.lock_async(&other));
        assert!(poll_once(others.as_mut()).is_pending());
        // The guard can end elsewhere.
        std::thread::scope(|s| drop(s.spawn(move || drop(mine))));
        drop(others.await.unwrap());
    });
    assert_eq!(counter.lock().unwrap().get(), 100);
}

fn hold(parent: &Peer) {
    let lock: ReentrantMutex<u64> = parent.recv();
    let one = lock.lock().unwrap();
    let _two = lock.lock().unwrap();
    one.set(5);
    parent.send("held");
    parent.recv::<()>();
}

#[test]
fn after_a_death_the_next_ones_are_told_until_the_repair() {
    in_time(|| {
        let lock = ReentrantMutex::new(1_u64).unwrap();
        let mut holder = child("reentrant: hold", &lock);
        holder.expect("held");
        assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
        std::thread::scope(|s| {
            let waits = s.spawn(|| lock.lock().is_err());
            holder.kill();
            assert!(waits.join().unwrap());
        });
        let Err(LockError::Poisoned { pid, guard }) = lock.lock() else { panic!("not told") };
        assert_eq!((pid, guard.get()), (Some(holder.id()), 5));
        assert!(lock.try_lock().is_err(), "again, and still poisoned");
        guard.repair();
        drop(lock.lock().unwrap());
        drop(guard);
        assert!(!lock.is_poisoned());
        std::thread::scope(|s| s.spawn(|| drop(lock.try_lock().unwrap())).join().unwrap());
    });
}

#[test]
fn an_owner_that_is_no_thread_has_all_forms() {
    in_time(|| {
        let lock = ReentrantMutex::new(0_u64).unwrap();
        let (me, other) = (LockOwner::new(), LockOwner::new());
        let one = lock.lock_as(&me).unwrap();
        let two = lock.try_lock_as(&me).unwrap();
        let three = lock.lock_timeout_as(&me, MOMENT).unwrap();
        for held in [one, two, three] {
            assert!(matches!(lock.try_lock_as(&other), Err(LockError::WouldBlock)));
            assert!(matches!(lock.lock_timeout_as(&other, MOMENT), Err(LockError::TimedOut)));
            assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)), "the thread is another owner");
            drop(held);
        }
        drop(lock.try_lock_as(&other).unwrap());
        let held = lock.lock_as(&other).unwrap();
        std::thread::scope(|s| {
            let waits = s.spawn(|| lock.lock_as(&me).unwrap().get());
            held.set(7);
            drop(held);
            assert_eq!(waits.join().unwrap(), 7);
        });
    });
}

#[test]
fn an_update_is_one_step_for_threads_that_share_an_owner() {
    in_time(|| {
        let counter = ReentrantMutex::new(0_u64).unwrap();
        let me = LockOwner::new();
        // The other thread comes in just between the reading and the writing of this one.
        let (mine, others) = (counter.lock_as(&me).unwrap(), counter.lock_as(&me).unwrap());
        let mut asked = Vec::new();
        std::thread::scope(|s| {
            let others = &others;
            mine.update(|value| {
                asked.push(value);
                if asked.len() == 1 {
                    s.spawn(|| others.update(|value| value + 10)).join().unwrap();
                }
                value + 1
            });
        });
        assert_eq!((mine.get(), asked), (11, vec![0, 10]));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mine.update(|_| panic!("on purpose"))));
        assert!(panicked.is_err());
        assert_eq!(others.get(), 11);
    });
}
