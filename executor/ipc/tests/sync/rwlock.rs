//! `RwLock`: many readers or one writer, in whatever processes they live and die.

use std::pin::pin;
use std::sync::atomic::{AtomicI32, Ordering};

use polypool_ipc::{LockError, RwLock};

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, wait_for};

pub(crate) const ROLES: &[crate::Role] =
    &[("rwlock: work", work), ("rwlock: read", read), ("rwlock: write", write), ("rwlock: want", want)];

type Words = [u64; 40];

fn increment(lock: &RwLock<Words>, times: u64) {
    for n in 0..times {
        if n % 3 == 0 {
            let words = lock.read().unwrap();
            assert!(words.iter().all(|word| *word == words[0]), "torn: {words:?}");
        }
        lock.write().unwrap().iter_mut().for_each(|word| *word += 1);
    }
}

fn work(parent: &Peer) {
    let (lock, times): (RwLock<Words>, u64) = parent.recv();
    increment(&lock, times);
}

#[test]
fn all_increments_are_there_and_no_reader_sees_half_of_one() {
    in_time(|| {
        const TIMES: u64 = 1_000;
        let lock = RwLock::new([0_u64; 40]).unwrap();
        let children: Vec<_> = (0..2).map(|_| child("rwlock: work", &(&lock, TIMES))).collect();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| increment(&lock, TIMES));
            }
        });
        children.into_iter().for_each(|child| child.join());
        assert_eq!(lock.read().unwrap()[0], 4 * TIMES);
    });
}

#[test]
fn readers_share_and_a_waiting_writer_is_not_overtaken() {
    in_time(|| {
        let lock = RwLock::new([1_u64; 40]).unwrap();
        let (one, two) = (lock.read().unwrap(), lock.try_read().unwrap());
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
        assert!(matches!(lock.write_timeout(MOMENT), Err(LockError::TimedOut)));
        // That writer has gone, so readers get in again.
        let three = lock.read_timeout(MOMENT).unwrap();
        let mut writer = Box::pin(lock.write_async());
        assert!(poll_once(writer.as_mut()).is_pending());
        assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)), "a writer waits");
        let mut reader = pin!(lock.read_async());
        assert!(poll_once(reader.as_mut()).is_pending(), "a writer waits");
        drop((one, two, three));
        let mut guard = wait_for(writer).unwrap();
        guard[0] = 2;
        assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
        assert!(matches!(lock.read_timeout(MOMENT), Err(LockError::TimedOut)));
        drop(guard);
        assert_eq!(wait_for(reader).unwrap()[0], 2);
        // A writer that isn't there any more keeps nobody out.
        let one = lock.read().unwrap();
        let mut writer = Box::pin(lock.write_async());
        assert!(poll_once(writer.as_mut()).is_pending());
        let mut reader = pin!(lock.read_async());
        assert!(poll_once(reader.as_mut()).is_pending());
        drop(writer);
        drop((one, wait_for(reader).unwrap()));
    });
}

fn read(parent: &Peer) {
    let lock: RwLock<Words> = parent.recv();
    let _guards = [lock.read().unwrap(), lock.read().unwrap()];
    parent.send("inside");
    parent.recv::<()>();
}

fn write(parent: &Peer) {
    let lock: RwLock<Words> = parent.recv();
    let mut guard = lock.write().unwrap();
    guard.fill(2);
    guard.commit();
    guard[..20].fill(3);
    parent.send("inside");
    parent.recv::<()>();
}

fn want(parent: &Peer) {
    let lock: RwLock<Words> = parent.recv();
    let mut future = pin!(lock.write_async());
    assert!(poll_once(future.as_mut()).is_pending());
    parent.send("waiting");
    parent.recv::<()>();
}

#[test]
fn the_share_of_a_dead_reader_is_given_back() {
    in_time(|| {
        let lock = RwLock::new([1_u64; 40]).unwrap();
        let mut readers = [child("rwlock: read", &lock), child("rwlock: read", &lock)];
        readers.iter().for_each(|reader| reader.expect("inside"));
        std::thread::scope(|s| {
            let writers: Vec<_> = (0..2).map(|_| s.spawn(|| lock.write().is_ok())).collect();
            let mut writer = pin!(lock.write_async());
            assert!(poll_once(writer.as_mut()).is_pending());
            for reader in &mut readers {
                reader.kill();
            }
            drop(wait_for(writer).expect("readers change nothing, so their death poisons nothing"));
            assert!(writers.into_iter().all(|writer| writer.join().unwrap()));
        });
    });
}

#[test]
fn a_dead_writer_poisons_and_leaves_the_last_commit() {
    in_time(|| {
        let lock = RwLock::new([1_u64; 40]).unwrap();
        let mut writer = child("rwlock: write", &lock);
        writer.expect("inside");
        let dead = Some(writer.id());
        std::thread::scope(|s| {
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    s.spawn(|| match lock.read() {
                        Err(LockError::Poisoned { pid, guard }) => (pid, *guard),
                        other => panic!("{other:?}"),
                    })
                })
                .collect();
            writer.kill();
            waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), (dead, [2; 40])));
        });
        assert!(lock.is_poisoned());
        let Err(LockError::Poisoned { pid, mut guard }) = lock.write() else { panic!("not poisoned") };
        assert_eq!(pid, dead);
        guard.fill(5);
        guard.repair();
        drop(guard);
        assert_eq!(*lock.read().unwrap(), [5; 40]);
    });
}

#[test]
fn a_writer_that_dies_while_it_waits_keeps_nobody_out() {
    in_time(|| {
        let lock = RwLock::new([1_u64; 40]).unwrap();
        let mine = lock.read().unwrap();
        let mut writer = child("rwlock: want", &lock);
        writer.expect("waiting");
        std::thread::scope(|s| {
            let reader = s.spawn(|| lock.read().is_ok());
            writer.kill();
            assert!(reader.join().unwrap());
        });
        drop(mine);
    });
}

#[test]
fn a_panic_of_a_writer_undoes_its_changes() {
    in_time(|| {
        let lock = RwLock::new([1_u64; 40]).unwrap();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut guard = lock.write().unwrap();
            guard[3] = 9;
            panic!("in the middle");
        }));
        assert!(panic.is_err());
        assert_eq!(*lock.try_write().unwrap(), [1; 40]);
    });
}

#[test]
fn many_tasks_on_one_thread_take_turns() {
    let lock = RwLock::new([0_u64; 40]).unwrap();
    let inside = AtomicI32::new(0);
    on_one_thread(async {
        let tasks = (0..200).map(|n| {
            let (lock, inside) = (&lock, &inside);
            async move {
                if n % 4 == 0 {
                    let mut guard = lock.write_async().await.unwrap();
                    assert_eq!(inside.swap(-1, Ordering::Relaxed), 0);
                    tokio::task::yield_now().await;
                    guard[0] += 1;
                    inside.store(0, Ordering::Relaxed);
                } else {
                    let _guard = lock.read_async().await.unwrap();
                    assert!(inside.fetch_add(1, Ordering::Relaxed) >= 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
        futures_util::future::join_all(tasks).await;
    });
    assert_eq!(lock.read().unwrap()[0], 50);
}
