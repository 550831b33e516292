//! `Condvar`: no notification is lost, whoever is killed or dropped.

use std::sync::atomic::{AtomicU32, Ordering};

use polypool_ipc::{Condvar, LockError, Mutex};

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, until, wait_for};

pub(crate) const ROLES: &[crate::Role] =
    &[("condvar: consume", consume), ("condvar: wait", wait), ("condvar: hold", hold)];

fn waiting(condvar: &Condvar) -> usize {
    format!("{condvar:?}").split(|c: char| !c.is_ascii_digit()).find_map(|number| number.parse().ok()).unwrap()
}

fn consume(parent: &Peer) {
    let (items, changed, count): (Mutex<[u64; 2]>, Condvar, u64) = parent.recv();
    for _ in 0..count {
        let mut guard = changed.wait_while(items.lock().unwrap(), |[items, _]| *items == 0).unwrap();
        guard[0] -= 1;
        guard[1] += 1;
    }
}

#[test]
fn each_item_wakes_a_consumer_in_some_process() {
    in_time(|| {
        const EACH: u64 = 1_000;
        let (items, changed) = (Mutex::new([0_u64; 2]).unwrap(), Condvar::new().unwrap());
        let children: Vec<_> = (0..2).map(|_| child("condvar: consume", &(&items, &changed, EACH))).collect();
        for _ in 0..2 * EACH {
            items.lock().unwrap()[0] += 1;
            changed.notify_one();
        }
        children.into_iter().for_each(|child| child.join());
        assert_eq!(*items.lock().unwrap(), [0, 2 * EACH]);
    });
}

#[test]
fn as_many_wake_as_are_notified() {
    in_time(|| {
        let (lock, condvar) = (Mutex::new(0_u32).unwrap(), Condvar::new().unwrap());
        let awake = AtomicU32::new(0);
        assert!(!condvar.notify_one(), "nobody waits");
        std::thread::scope(|s| {
            for _ in 0..6 {
                s.spawn(|| {
                    let guard = lock.lock().unwrap();
                    drop(condvar.wait(guard).unwrap());
                    awake.fetch_add(1, Ordering::SeqCst);
                });
            }
            until(|| waiting(&condvar) == 6);
            assert!(condvar.notify_one());
            until(|| awake.load(Ordering::SeqCst) == 1);
            assert_eq!(condvar.notify(2), 2);
            until(|| awake.load(Ordering::SeqCst) == 3);
            // None of the others has been let go.
            assert_eq!(waiting(&condvar), 3);
            assert_eq!(condvar.notify_all(), 3);
        });
        assert_eq!(awake.into_inner(), 6);
        assert_eq!(condvar.notify_all(), 0);
    });
}

#[test]
fn waiting_can_time_out_and_has_the_lock_afterwards() {
    in_time(|| {
        let (lock, condvar) = (Mutex::new(1_u32).unwrap(), Condvar::new().unwrap());
        let (mut guard, notified) = condvar.wait_timeout(lock.lock().unwrap(), MOMENT).unwrap();
        assert!(!notified);
        assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
        *guard = 2;
        let (guard, became) = condvar.wait_while_timeout(guard, MOMENT, |n| *n == 2).unwrap();
        assert!(!became);
        let (guard, became) = condvar.wait_while_timeout(guard, MOMENT, |n| *n == 1).unwrap();
        assert!(became);
        drop(guard);
        assert_eq!(condvar.notify_all(), 0, "those who gave up don't count");
        // What was changed before the wait is seen by others during it.
        std::thread::scope(|s| {
            let mut guard = lock.lock().unwrap();
            *guard = 3;
            s.spawn(|| {
                lock.with(|n| *n += 1).unwrap();
                condvar.notify_one();
            });
            assert_eq!(*condvar.wait_while(guard, |n| *n == 3).unwrap(), 4);
        });
    });
}

fn wait(parent: &Peer) {
    let (lock, condvar): (Mutex<u32>, Condvar) = parent.recv();
    let guard = lock.lock().unwrap();
    parent.send("about to wait");
    let _guard = condvar.wait(guard);
    parent.send("has the lock");
    parent.recv::<()>();
}

#[test]
fn the_notification_of_one_who_is_killed_passes_on() {
    in_time(|| {
        let (lock, condvar) = (Mutex::new(0_u32).unwrap(), Condvar::new().unwrap());
        for forms in 0..3 {
            let mut first = child("condvar: wait", &(&lock, &condvar));
            first.expect("about to wait");
            until(|| waiting(&condvar) == 1);
            std::thread::scope(|s| {
                let (second, mut future);
                if forms == 0 {
                    second =
                        Some(s.spawn(|| condvar.wait_timeout(lock.lock().unwrap(), crate::family::LIMIT).unwrap().1));
                    future = None;
                } else {
                    second = None;
                    future = Some(Box::pin(condvar.wait_async(lock.lock().unwrap())));
                    assert!(poll_once(future.as_mut().unwrap().as_mut()).is_pending());
                }
                until(|| waiting(&condvar) == 2);
                // Notified, but it can't have the lock, so it can't act on it.
                let guard = lock.lock().unwrap();
                assert!(condvar.notify_one());
                until(|| waiting(&condvar) == 1);
                if forms == 2 {
                    // One more who waits comes later than the notification.
                    drop(guard);
                    first.expect("has the lock");
                    first.kill();
                    // That one had got it, and died with the lock: nothing to pass on.
                    lock.lock().unwrap_err().into_guard().unwrap().repair();
                    assert!(condvar.notify_one());
                } else {
                    first.kill();
                    drop(guard);
                }
                if let Some(second) = second {
                    assert!(second.join().unwrap());
                }
                if let Some(future) = future.take() {
                    drop(wait_for(future).unwrap());
                }
            });
            assert_eq!(waiting(&condvar), 0);
        }
    });
}

#[test]
fn the_notification_of_a_dropped_future_passes_on() {
    in_time(|| {
        let (lock, condvar) = (Mutex::new(0_u32).unwrap(), Condvar::new().unwrap());
        for polled_again in [false, true] {
            let mut one = Box::pin(condvar.wait_async(lock.lock().unwrap()));
            assert!(poll_once(one.as_mut()).is_pending());
            let mut two = Box::pin(condvar.wait_async(lock.lock().unwrap()));
            assert!(poll_once(two.as_mut()).is_pending());
            let guard = lock.lock().unwrap();
            assert!(condvar.notify_one());
            if polled_again {
                // It knows of its notification, and waits for the lock.
                until(|| {
                    assert!(poll_once(one.as_mut()).is_pending());
                    waiting(&condvar) == 1
                });
            }
            drop(guard);
            drop(one);
            drop(wait_for(two).unwrap());
            // One who has waited in vain takes nothing with it.
            let mut three = Box::pin(condvar.wait_async(lock.lock().unwrap()));
            assert!(poll_once(three.as_mut()).is_pending());
            drop(three);
            assert!(!condvar.notify_one());
            drop(lock.try_lock().unwrap());
        }
    });
}

fn hold(parent: &Peer) {
    let lock: Mutex<u32> = parent.recv();
    let _guard = lock.lock();
    parent.send("held");
    parent.recv::<()>();
}

#[test]
fn who_waits_is_told_that_a_holder_of_the_lock_died() {
    in_time(|| {
        let (lock, condvar) = (Mutex::new(0_u32).unwrap(), Condvar::new().unwrap());
        std::thread::scope(|s| {
            let waiter = s.spawn(|| match condvar.wait_while(lock.lock().unwrap(), |_| true) {
                Err(LockError::Poisoned { pid, guard }) => (pid, *guard),
                other => panic!("{other:?}"),
            });
            until(|| waiting(&condvar) == 1);
            let mut holder = child("condvar: hold", &lock);
            holder.expect("held");
            condvar.notify_one();
            holder.kill();
            assert_eq!(waiter.join().unwrap(), (Some(holder.id()), 0));
        });
    });
}

#[test]
fn more_than_have_a_slot_can_wait() {
    let (lock, condvar) = (Mutex::new(0_u32).unwrap(), Condvar::new().unwrap());
    on_one_thread(async {
        let consumers = (0..520).map(|_| async {
            let mut guard = condvar.wait_while_async(lock.lock_async().await.unwrap(), |n| *n == 0).await.unwrap();
            *guard -= 1;
        });
        let producer = async {
            for _ in 0..520 {
                *lock.lock_async().await.unwrap() += 1;
                condvar.notify_one();
                tokio::task::yield_now().await;
            }
        };
        futures_util::future::join(futures_util::future::join_all(consumers), producer).await;
    });
    assert_eq!(*lock.lock().unwrap(), 0);
}
