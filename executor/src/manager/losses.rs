//! Tests of what is left behind by a client whose connection is lost: what it held, what it waited for, and what it had
//! been given without having seen it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Manager, ManagerError, Proxy};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(20);

/// Runs a test, which must not take for ever.
fn in_time(test: fn()) {
    let (running, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _running = running;
        test();
    });
    assert_ne!(ended.recv_timeout(2 * LONG), Err(mpsc::RecvTimeoutError::Timeout), "it hangs");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[track_caller]
fn until(mut it_is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !it_is_so() {
        assert!(start.elapsed() < LONG, "it has not become true after {LONG:?}");
        std::thread::yield_now();
    }
}

/// The object, as another process has it.
fn elsewhere<P: Proxy>(proxy: &P) -> P {
    let other = proxy.with_own_connection();
    other.remote().0.attach().unwrap();
    other
}

/// Ends a connection of its own, and waits until the server has taken back all that the client had there.
#[track_caller]
fn lose(manager: &Manager, proxy: &impl Proxy) {
    let connections = || manager.stats().wait().unwrap().connections;
    until(|| connections() == 2);
    proxy.remote().cut();
    until(|| connections() == 1);
}

#[test]
fn what_was_granted_over_a_lost_connection_is_not_given_back_over_the_next() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let semaphore = manager.named("s").bounded_semaphore(1).wait().unwrap();
        let lost = semaphore.acquire().wait().unwrap();
        semaphore.remote().cut();
        // The server has it again, and gives it to the new connection.
        let permit = semaphore.acquire().wait().unwrap();
        drop(lost);
        assert_eq!(semaphore.available().wait().unwrap(), 0, "the permit is held");
        drop(permit);
        assert_eq!(semaphore.available().wait().unwrap(), 1);
    });
}

#[test]
fn what_came_over_a_lost_connection_is_not_taken_back_over_the_next() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let queue = manager.named("q").queue::<u8>().wait().unwrap();
        (1..=2).for_each(|n| queue.put(&n).wait().unwrap());
        let came = queue.get().start();
        until(|| came.has_come());
        queue.remote().cut();
        assert_eq!(queue.get().wait().unwrap(), 2);
        drop(came);
        assert_eq!(queue.len().wait().unwrap(), 0, "the item is lost with its connection, and not there once more");
        queue.task_done().wait().unwrap();
        assert_eq!(queue.join().wait().unwrap(), 1);
    });
}

#[test]
fn who_is_gone_gets_no_lock() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let (lock, condition) = (manager.lock().wait().unwrap(), manager.condition().wait().unwrap());
        for _ in 0..2 {
            let gone = elsewhere(&lock);
            let guard = lock.lock().wait().unwrap();
            let _waiting = gone.lock().start();
            assert!(gone.is_locked().wait().unwrap());
            lose(&manager, &gone);
            drop(guard);
            drop(lock.lock_timeout(LONG).wait().unwrap());
        }

        let gone = elsewhere(&condition);
        let guard = gone.lock().wait().unwrap();
        let _waiting = guard.wait().start();
        let ours = condition.lock().wait().unwrap();
        lose(&manager, &gone);
        ours.notify_all().wait().unwrap();
        drop(ours);
        let next = condition.lock().wait_timeout(LONG).expect("the lock is with somebody who is gone");
        drop(next.expect("who waits for the lock does not hold it, and poisons nothing"));
    });
}

#[test]
fn the_lock_of_who_is_gone_is_poisoned_for_all_until_it_is_repaired() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let lock = manager.lock().wait().unwrap();
        let gone = elsewhere(&lock);
        let guard = gone.lock().wait().unwrap();
        let waiting = [lock.lock().start(), lock.lock().start()];
        let repairs = lock.repair().start();
        assert!(lock.is_locked().wait().unwrap());
        lose(&manager, &gone);
        let pid = std::process::id();
        for call in waiting {
            assert!(matches!(call.wait(), Err(ManagerError::Poisoned { pid: it }) if it == pid));
        }
        let repaired = repairs.wait().unwrap();
        // The guard of before is nobody's.
        drop(guard);
        assert!(matches!(lock.try_lock().wait(), Err(ManagerError::TimedOut)));
        drop(repaired);
        drop(lock.try_lock().wait().unwrap());
    });
}

#[test]
fn who_is_gone_gets_no_permits_and_keeps_nobody_waiting_behind() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let semaphore = manager.semaphore(2).wait().unwrap();
        let gone = elsewhere(&semaphore);
        let one = semaphore.acquire().wait().unwrap();
        let _waiting = gone.acquire_many(2).start();
        assert_eq!(gone.available().wait().unwrap(), 1);
        let mut behind = semaphore.acquire().start();
        assert_eq!(semaphore.available().wait().unwrap(), 1);
        lose(&manager, &gone);
        let two = behind.wait_timeout(LONG).expect("somebody who is gone stands before it").unwrap();
        drop((one, two));
        assert_eq!(semaphore.available().wait().unwrap(), 2);

        // The same when the one before only gives up.
        let one = semaphore.acquire().wait().unwrap();
        let before = semaphore.acquire_many(2).start();
        let mut behind = semaphore.acquire().start();
        assert_eq!(semaphore.available().wait().unwrap(), 1);
        drop(before);
        let two = behind.wait_timeout(LONG).expect("somebody who has given up stands before it").unwrap();
        drop((one, two));
        assert_eq!(semaphore.available().wait().unwrap(), 2);
    });
}

#[test]
fn who_is_gone_is_not_waited_for_at_a_barrier_nor_counted() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let barrier = manager.barrier(2).wait().unwrap();
        let gone = elsewhere(&barrier);
        let _waiting = gone.wait().start();
        until(|| barrier.state().wait().unwrap().waiting == 1);
        lose(&manager, &gone);
        let state = barrier.state().wait().unwrap();
        assert_eq!((state.waiting, state.broken), (0, false));
        let pair = [barrier.wait().start(), barrier.wait().start()];
        let mut places = pair.map(|call| call.wait().unwrap());
        places.sort_unstable();
        assert_eq!(places, [0, 1]);
    });
}

#[test]
fn who_is_gone_takes_no_item_and_puts_none() {
    in_time(|| {
        let manager = Manager::in_thread().unwrap();
        let queue = manager.bounded_queue::<u8>(1).wait().unwrap();
        let gone = elsewhere(&queue);
        let _waiting = gone.get().start();
        assert_eq!(gone.len().wait().unwrap(), 0);
        lose(&manager, &gone);
        queue.put(&1).wait().unwrap();
        assert_eq!(queue.len().wait().unwrap(), 1, "the item went to somebody who is gone");

        let gone = elsewhere(&queue);
        let _waiting = gone.put(&2).start();
        assert_eq!(gone.len().wait().unwrap(), 1);
        lose(&manager, &gone);
        assert_eq!(queue.get().wait().unwrap(), 1);
        assert_eq!(queue.try_get().wait().unwrap(), None);
        queue.task_done().wait().unwrap();
        assert_eq!(queue.join().wait().unwrap(), 0);
    });
}

#[test]
fn objects_go_with_the_last_who_referred_to_them() {
    in_time(|| {
        let manager = Manager::builder().transit(Duration::ZERO).in_thread().unwrap();
        let value = manager.value(&1_u8).wait().unwrap();
        let other = elsewhere(&value);
        assert_eq!(other.get().wait().unwrap(), 1);
        drop(value);
        assert_eq!(manager.stats().wait().unwrap().objects, 1, "one still refers to it");
        lose(&manager, &other);
        assert_eq!(manager.stats().wait().unwrap().objects, 0);
        assert!(matches!(other.get().wait(), Err(ManagerError::ObjectGone)));
    });
}
