//! A process that was stopped in the middle of one of the steps that nobody else can make meanwhile: those who don't
//! want to wait are told.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use polypool_ipc::{
    Barrier, BarrierError, BoundedSemaphore, ByteQueue, GetError, Lock, LockError, Permit, PutFailure, RwLock,
    Semaphore, SemaphoreError, pack,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::family::{Child, Peer, child};
use crate::{MOMENT, in_time, poll_once};

pub(crate) const ROLES: &[crate::Role] = &[("stopped: hold", hold)];

fn hold(parent: &Peer) {
    let lock: Lock = parent.recv();
    let _held = lock.lock().unwrap();
    parent.send("held");
    parent.recv::<()>();
}

fn memory_of(handle: &impl Serialize) -> File {
    let (_, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    File::from(luggage.fds().next().unwrap().as_fd().try_clone_to_owned().unwrap())
}

/// A stopped process, and its name as the word of a lock has it.
fn stopped() -> (Child, [u8; 4]) {
    let lock = Lock::new(()).unwrap();
    let holder = child("stopped: hold", &lock);
    holder.expect("held");
    kill_process(Pid::from_child(&holder.process), Signal::STOP).unwrap();
    let mut word = [0; 4];
    memory_of(&lock).read_exact_at(&mut word, 64).unwrap();
    assert_ne!(word, [0; 4]);
    (holder, word)
}

#[test]
fn who_does_not_want_to_wait_is_told_that_another_one_is_in_the_middle() {
    in_time(|| {
        let (_holder, seat) = stopped();

        let (semaphore, bounded) = (Semaphore::new(2).unwrap(), BoundedSemaphore::new(2).unwrap());
        for semaphore in [&semaphore, &*bounded] {
            let memory = memory_of(semaphore);
            memory.write_all_at(&seat, 64).unwrap();
            assert_eq!(semaphore.try_acquire().unwrap_err(), SemaphoreError::WouldBlock);
            assert_eq!(semaphore.try_acquire_many(2).unwrap_err(), SemaphoreError::WouldBlock);
            assert_eq!(semaphore.acquire_timeout(MOMENT).unwrap_err(), SemaphoreError::TimedOut);
            assert!(poll_once(std::pin::pin!(semaphore.acquire_async())).is_pending());
            assert_eq!(format!("{semaphore:?}"), "Semaphore { .. }");
            memory.write_all_at(&[0; 4], 64).unwrap();
            assert_eq!(semaphore.try_acquire_many(2).as_ref().map(Permit::permits), Ok(2));
            assert_eq!(format!("{semaphore:?}"), "Semaphore { available: 2, .. }");
        }

        let lock = RwLock::new(1_u64).unwrap();
        let memory = memory_of(&lock);
        memory.write_all_at(&seat, 64).unwrap();
        assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
        assert!(matches!(lock.read_timeout(MOMENT), Err(LockError::TimedOut)));
        assert!(matches!(lock.write_timeout(MOMENT), Err(LockError::TimedOut)));
        assert_eq!(format!("{lock:?}"), "RwLock { .. }");
        memory.write_all_at(&[0; 4], 64).unwrap();
        *lock.try_write().unwrap() = 2;
        assert_eq!(*lock.try_read().unwrap(), 2);
        assert_eq!(format!("{lock:?}"), "RwLock { readers: 0, writer: false, poisoned: false, .. }");

        let barrier = Barrier::new(1).unwrap();
        let memory = memory_of(&barrier);
        memory.write_all_at(&seat, 64).unwrap();
        assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock));
        assert_eq!(barrier.wait_timeout(MOMENT), Err(BarrierError::TimedOut));
        assert_eq!(format!("{barrier:?}"), "Barrier { .. }");
        memory.write_all_at(&[0; 4], 64).unwrap();
        assert!(!barrier.is_broken(), "it hasn't come");
        assert!(barrier.try_wait().unwrap().is_leader());
    });
}

#[test]
fn who_does_not_want_to_wait_for_a_queue_is_told_that_another_one_is_in_the_middle() {
    in_time(|| {
        let (_holder, seat) = stopped();
        let queue = ByteQueue::unbounded().unwrap();
        let memory = memory_of(&queue);
        queue.put(b"one").unwrap();
        // The locks of the putters and of the getters.
        let (putters, getters) = (64 + 64 + 128, 64 + 64 + 3 * 128);
        memory.write_all_at(&seat, putters).unwrap();
        assert!(matches!(queue.try_put(b"two"), Err(PutFailure::Busy)));
        assert!(matches!(queue.put_timeout(b"two", MOMENT), Err(PutFailure::TimedOut)));
        assert!(poll_once(std::pin::pin!(queue.put_async(b"two"))).is_pending());
        assert_eq!(queue.try_get().unwrap(), b"one", "the others are not concerned");
        memory.write_all_at(&[0; 4], putters).unwrap();
        queue.try_put(b"two").unwrap();
        memory.write_all_at(&seat, getters).unwrap();
        assert!(matches!(queue.try_get(), Err(GetError::Busy)));
        assert!(matches!(queue.get_timeout(MOMENT), Err(GetError::TimedOut)));
        queue.try_put(b"three").unwrap();
        // To grow, it takes both.
        assert!(matches!(queue.try_put(&[0; 100_000]), Err(PutFailure::Busy)));
        memory.write_all_at(&[0; 4], getters).unwrap();
        queue.try_put(&[0; 100_000]).unwrap();
        assert_eq!((queue.try_get().unwrap(), queue.try_get().unwrap()), (b"two".to_vec(), b"three".to_vec()));
    });
}
