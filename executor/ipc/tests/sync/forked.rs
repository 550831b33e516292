//! A child made by a plain `fork`: it is a process of its own for all who share objects with it, though it has its
//! parent's handles.

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polypool_ipc::{
    Array, Event, JoinableQueue, Lock, LockError, Mutex, Once, ReentrantMutex, RwLock, Semaphore, SharedList, Value,
    pack,
};

use crate::family::{LIMIT, Peer, child};
use crate::{in_time, poll_once, until, wait_for};

pub(crate) const ROLES: &[crate::Role] = &[
    ("forked: inherits", inherits),
    ("forked: dies", dies),
    ("forked: outlives", outlives),
    ("forked: lends", lends),
    ("forked: counts", counts),
    ("forked: busy", busy),
    ("forked: seatless", seatless),
];

/// A forked child; whatever happens, it doesn't live longer than anything may.
struct Forked(i32);

/// What a plain `fork` does, and `body` in the child, which ends with it.
fn fork(body: impl FnOnce()) -> Forked {
    // SAFETY: the C library sees to it that its child can go on with memory and threads, as does the crate for what is
    // its own; the locks of the standard library that other threads may hold here (of the streams) are not used by the
    // children.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: plain system calls.
            unsafe { libc::alarm(LIMIT.as_secs() as u32) };
            let ok = catch_unwind(AssertUnwindSafe(body)).is_ok();
            // SAFETY: ends the process without anything that the parent would do at its end.
            unsafe { libc::_exit(i32::from(!ok)) }
        }
        pid => Forked(pid),
    }
}

impl Forked {
    /// Waits for its end: how it ended, as the system says it.
    fn wait(self) -> i32 {
        let mut status = 0;
        // SAFETY: the status is ours.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        status
    }

    #[track_caller]
    fn join(self) {
        assert_eq!(self.wait(), 0, "the forked child failed");
    }
}

fn inherits(parent: &Peer) {
    parent.recv::<()>();
    let (mutex, lock) = (Mutex::new(1_u64).unwrap(), RwLock::new(1_u64).unwrap());
    let (read, semaphore) = (RwLock::new(1_u64).unwrap(), Semaphore::new(3).unwrap());
    let (value, array) = (Value::new(1_u64).unwrap(), Array::from_slice(&[[1_u64; 5]]).unwrap());
    let (reentrant, once) = (ReentrantMutex::new(1_u64).unwrap(), Once::new().unwrap());
    let queue = JoinableQueue::unbounded().unwrap();
    queue.put(1_u64).unwrap();
    let mut held = (
        mutex.lock().unwrap(),
        lock.write().unwrap(),
        value.lock(),
        array.lock().unwrap(),
        read.read().unwrap(),
        semaphore.acquire(),
        queue.get_task().unwrap(),
        reentrant.lock().unwrap(),
    );
    (*held.0, *held.1, *held.2, held.3[0][0]) = (2, 2, 2, 2);
    let mut head = Box::pin(semaphore.acquire_many_async(3));
    assert!(poll_once(head.as_mut()).is_pending());
    let mut behind = Box::pin(mutex.lock_async());
    assert!(poll_once(behind.as_mut()).is_pending());

    // The child drops all of it, and nothing happens. It can't go in itself.
    let mut all = Some((held, head, behind));
    fork(|| {
        if let Some((held, ..)) = &mut all {
            held.0.commit();
            held.1.commit();
        }
        drop(all.take());
        assert_eq!((value.get(), semaphore.available()), (1, 2));
        assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
        assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
        assert!(matches!(read.try_write(), Err(LockError::WouldBlock)));
        assert!(matches!(array.try_lock(), Err(LockError::WouldBlock)));
        assert!(matches!(reentrant.try_lock(), Err(LockError::WouldBlock)), "the thread isn't that of the parent");
        assert!(value.try_lock().is_none());
        assert!(semaphore.try_acquire().is_err(), "somebody stands in line");
        assert_eq!(queue.unfinished(), 1);
        assert!(queue.task_done().is_err());
    })
    .join();
    let (held, head, behind) = all.take().unwrap();
    drop(head);
    drop(behind);
    assert_eq!((queue.unfinished(), semaphore.available()), (1, 2));
    assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(reentrant.lock(), Ok(guard) if guard.get() == 1), "ours");
    drop(held);
    assert_eq!((*mutex.lock().unwrap(), *lock.read().unwrap(), value.get()), (2, 2, 2));
    assert_eq!((array.get(0), semaphore.available(), queue.unfinished()), (Ok([2, 1, 1, 1, 1]), 3, 0));
    drop((read.write().unwrap(), reentrant.lock().unwrap()));

    // To be forked off in the middle of work under a lock is to have no part in it.
    let list = SharedList::new([1.into()]).unwrap();
    let mut forked = None;
    let mut is_child = false;
    let mut middle = |forked: &mut Option<Forked>| {
        // SAFETY: as in `fork`.
        match unsafe { libc::fork() } {
            0 => is_child = true,
            pid => *forked = Some(Forked(pid)),
        }
        is_child
    };
    for step in 0..6 {
        let new = |is_child| if is_child { 99 } else { step };
        match step {
            0 => value.with(|v| *v = new(middle(&mut forked))),
            1 => mutex.with(|v| *v = new(middle(&mut forked))).unwrap(),
            2 => array.with_element(0, |v| v[0] = new(middle(&mut forked))).unwrap(),
            3 => list.update(0, |v| *v = (new(middle(&mut forked)) as u32).into()).unwrap(),
            4 => _ = once.call_once(|_| _ = middle(&mut forked)),
            _ => {
                let mut guard = array.lock().unwrap();
                if middle(&mut forked) {
                    assert_eq!((guard.len(), guard.iter_mut().count()), (0, 0));
                } else {
                    guard[0][1] = 5;
                }
            }
        }
        match forked.take() {
            // SAFETY: ends the process without anything that the parent would do at its end.
            None => unsafe { libc::_exit(0) },
            Some(forked) => forked.join(),
        }
        match step {
            0 => assert_eq!(value.get(), 0),
            1 => assert_eq!(*mutex.try_lock().unwrap(), 1),
            2 => assert_eq!(array.try_get(0).unwrap()[0], 2),
            3 => assert_eq!(list.get(0), Ok(3.into())),
            4 => assert!(once.is_completed()),
            _ => assert_eq!((array.is_poisoned(), array.try_get(0).unwrap()[1]), (false, 5)),
        }
    }
}

#[test]
fn what_a_forked_child_inherits_stays_its_parents() {
    in_time(|| child("forked: inherits", &()).join());
}

type Shared = (Mutex<u64>, RwLock<u64>, Semaphore, Array<u64>, JoinableQueue<u64>, Event);

fn dies(parent: &Peer) {
    let (mutex, lock, semaphore, array, queue, held): Shared = parent.recv();
    // The parent is on the board, and goes on living.
    drop((mutex.lock().unwrap(), semaphore.acquire()));
    let forked = fork(|| {
        let _all = (mutex.lock().unwrap(), lock.write().unwrap(), semaphore.acquire_many(2).unwrap());
        let mut slice = array.lock().unwrap();
        slice[0] = 1;
        let _task = queue.get_task().unwrap();
        held.set();
        loop {
            std::thread::park();
        }
    });
    parent.send(&forked.0);
    parent.expect("kill");
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(forked.0, libc::SIGKILL) }, 0);
    forked.wait();
    parent.send("killed");
    parent.recv::<()>();
}

#[test]
fn the_death_of_a_forked_child_is_noticed_though_its_parent_lives() {
    in_time(|| {
        let shared: Shared = (
            Mutex::new(1).unwrap(),
            RwLock::new(1).unwrap(),
            Semaphore::new(3).unwrap(),
            Array::new(1).unwrap(),
            JoinableQueue::unbounded().unwrap(),
            Event::new().unwrap(),
        );
        let (mutex, lock, semaphore, array, queue, held) = &shared;
        queue.put(1).unwrap();
        let child = child("forked: dies", &shared);
        let pid = child.recv::<i32>().cast_unsigned();
        held.wait();
        assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
        assert_eq!((semaphore.available(), queue.unfinished()), (1, 1));
        std::thread::scope(|s| {
            let waits = s.spawn(|| semaphore.acquire_many(3).unwrap().permits());
            child.send("kill");
            child.expect("killed");
            assert_eq!(waits.join().unwrap(), 3);
        });
        assert!(matches!(mutex.lock(), Err(LockError::Poisoned { pid: Some(it), .. }) if it == pid));
        assert!(matches!(lock.read(), Err(LockError::Poisoned { pid: Some(it), .. }) if it == pid));
        assert!(matches!(array.lock(), Err(LockError::Poisoned { pid: Some(it), .. }) if it == pid));
        queue.join();
        assert_eq!(queue.abandoned(), 1);
        child.send(&());
        child.join();
    });
}

fn outlives(parent: &Peer) {
    let (lock, other, waiting, done): (Lock, Lock, Event, Value<u64>) = parent.recv();
    let _held = (lock.lock().unwrap(), other.lock().unwrap());
    let _child = fork(|| {
        // A future, and a thread.
        let mut future = pin!(lock.lock_async());
        assert!(poll_once(future.as_mut()).is_pending());
        waiting.set();
        let one = u64::from(wait_for(future).is_err());
        let two = u64::from(other.lock().is_err());
        done.set(1 + one + two);
    });
    parent.recv::<()>();
}

fn lends(parent: &Peer) {
    parent.recv::<()>();
    let array = Array::from_slice(&[1_u64]).unwrap();
    let (held, tried) = (Event::new().unwrap(), Event::new().unwrap());
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut guard = array.lock().unwrap();
            held.set();
            tried.wait();
            guard[0] = 2;
        });
        held.wait();
        // The child has a copy of the guard as well, but not the thread that would drop it.
        let child = fork(|| {
            assert!(matches!(array.try_lock(), Err(LockError::WouldBlock)));
            assert!(array.try_get(0).is_err());
            tried.set();
            assert_eq!(array.get_timeout(0, LIMIT / 2), Ok(2));
            array.lock_timeout(LIMIT / 2).unwrap()[0] = 3;
        });
        child.join();
    });
    assert_eq!(array.get(0), Ok(3));
}

#[test]
fn a_slice_that_another_thread_had_at_the_fork_keeps_no_child_out() {
    in_time(|| child("forked: lends", &()).join());
}

#[test]
fn a_forked_child_learns_of_its_parents_death() {
    in_time(|| {
        let (lock, other) = (Lock::new(()).unwrap(), Lock::new(()).unwrap());
        let (waiting, done) = (Event::new().unwrap(), Value::new(0_u64).unwrap());
        let mut child = child("forked: outlives", &(&lock, &other, &waiting, &done));
        waiting.wait();
        assert_eq!(done.get(), 0);
        child.kill();
        until(|| done.get() != 0);
        assert_eq!(done.get(), 3);
    });
}

fn counts(parent: &Peer) {
    let (mutex, reentrant, semaphore): (Mutex<u64>, ReentrantMutex<u64>, Semaphore) = parent.recv();
    let count = || {
        for _ in 0..2_000 {
            *mutex.lock().unwrap() += 1;
            reentrant.lock().unwrap().update(|n| n + 1);
            drop(semaphore.acquire());
        }
    };
    let children: Vec<_> = (0..2).map(|_| fork(count)).collect();
    count();
    children.into_iter().for_each(Forked::join);
}

#[test]
fn forked_children_and_their_parents_exclude_each_other() {
    in_time(|| {
        let shared = (Mutex::new(0_u64).unwrap(), ReentrantMutex::new(0_u64).unwrap(), Semaphore::new(1).unwrap());
        child("forked: counts", &shared).join();
        assert_eq!((*shared.0.lock().unwrap(), shared.1.lock().unwrap().get()), (6_000, 6_000));
    });
}

fn busy(parent: &Peer) {
    let shared: Mutex<u64> = parent.recv();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            // They are anywhere when the process is forked: under the lock of any table.
            s.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let lock = Lock::new(()).unwrap();
                    let held = lock.lock().unwrap();
                    assert!(poll_once(pin!(lock.lock_async())).is_pending());
                    drop(held);
                    let queue = JoinableQueue::<u64>::unbounded().unwrap();
                    assert!(queue.try_join());
                    *shared.lock().unwrap() += 1;
                }
            });
        }
        let begun = Instant::now();
        for _ in 0..150 {
            fork(|| {
                *shared.lock().unwrap() += 1;
                let lock = Lock::new(()).unwrap();
                let held = lock.lock().unwrap();
                let mut waits = pin!(lock.lock_async());
                assert!(poll_once(waits.as_mut()).is_pending());
                drop(held);
                drop(wait_for(waits));
                assert!(JoinableQueue::<u64>::unbounded().unwrap().try_join());
            })
            .join();
            if begun.elapsed() > LIMIT / 4 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(shared.lock_timeout(Duration::from_secs(10)).is_ok());
}

#[test]
fn a_fork_in_the_middle_of_everything_leaves_no_lock_behind() {
    in_time(|| child("forked: busy", &Mutex::new(0_u64).unwrap()).join());
}

fn seatless(parent: &Peer) {
    parent.recv::<()>();
    let (mutex, array) = (Mutex::new(1_u64).unwrap(), Array::from_slice(&[1_u64]).unwrap());
    let (reentrant, semaphore) = (ReentrantMutex::new(1_u64).unwrap(), Semaphore::new(1).unwrap());
    let mut held = Some((mutex.lock().unwrap(), array.lock().unwrap(), reentrant.lock().unwrap(), semaphore.acquire()));
    // Nobody else can sit down: all other seats are taken, by somebody who lives.
    let (_, luggage) = pack(|| serde_json::to_vec(&mutex).unwrap());
    let board = std::fs::File::from(luggage.fds().last().unwrap().try_clone_to_owned().unwrap());
    for slot in 1..=4_095 {
        let (mut word, place) = ([0; 4], 64 + slot * 64 + 8);
        board.read_exact_at(&mut word, place).unwrap();
        if u32::from_le_bytes(word) & 0x3fff_ffff == 0 {
            board.write_all_at(&1_u32.to_le_bytes(), place).unwrap();
        }
    }
    fork(|| {
        std::panic::set_hook(Box::new(|_| {}));
        let refused = |what: &dyn Fn()| {
            let said = catch_unwind(AssertUnwindSafe(what)).expect_err("it has gone in without a seat");
            let said = said.downcast_ref::<String>().unwrap();
            assert!(said.contains("4095 processes share objects already"), "{said}");
        };
        for _ in 0..2 {
            refused(&|| drop(mutex.try_lock()));
            refused(&|| drop(reentrant.try_lock()));
            refused(&|| drop(semaphore.try_acquire()));
        }
        // It isn't the parent either.
        let (_, guard, ..) = held.as_mut().unwrap();
        assert_eq!((guard.len(), guard.iter_mut().count()), (0, 0));
        drop(held.take());
        refused(&|| drop(mutex.try_lock()));
    })
    .join();
    assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(array.try_lock(), Err(LockError::WouldBlock)));
    assert!(semaphore.try_acquire().is_err());
    let (_, guard, ..) = held.as_mut().unwrap();
    guard[0] = 2;
    drop(held);
    assert_eq!((*mutex.try_lock().unwrap(), array.get(0), semaphore.available()), (1, Ok(2), 1));
}

#[test]
fn a_forked_child_that_gets_no_seat_is_not_its_parent() {
    in_time(|| child("forked: seatless", &()).join());
}
