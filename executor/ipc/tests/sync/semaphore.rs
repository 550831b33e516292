//! `Semaphore` and `BoundedSemaphore`: never more than there are, and the dead give back.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};

use polypool_ipc::{BoundedSemaphore, Mutex, Semaphore, SemaphoreError};

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, until, wait_for};

pub(crate) const ROLES: &[crate::Role] =
    &[("semaphore: enter", enter), ("semaphore: hold", hold), ("semaphore: want", want)];

fn visit(semaphore: &Semaphore, inside: &Mutex<[u32; 2]>) {
    for _ in 0..300 {
        let permit = semaphore.acquire();
        inside
            .with(|[now, most]| {
                *now += 1;
                *most = (*most).max(*now);
            })
            .unwrap();
        std::thread::yield_now();
        inside.with(|[now, _]| *now -= 1).unwrap();
        drop(permit);
    }
}

fn enter(parent: &Peer) {
    let (semaphore, inside): (Semaphore, Mutex<[u32; 2]>) = parent.recv();
    visit(&semaphore, &inside);
}

#[test]
fn no_more_are_inside_than_there_are_permits() {
    in_time(|| {
        let (semaphore, inside) = (Semaphore::new(2).unwrap(), Mutex::new([0_u32; 2]).unwrap());
        let children: Vec<_> = (0..2).map(|_| child("semaphore: enter", &(&semaphore, &inside))).collect();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| visit(&semaphore, &inside));
            }
        });
        children.into_iter().for_each(|child| child.join());
        let [now, most] = *inside.lock().unwrap();
        assert_eq!(now, 0);
        assert!((1..=2).contains(&most), "{most} were inside at a time");
        assert_eq!(semaphore.available(), 2);
    });
}

fn hold(parent: &Peer) {
    let (semaphore, permits): (Semaphore, u32) = parent.recv();
    let _one = semaphore.acquire_many(permits - 1).unwrap();
    let _two = semaphore.acquire();
    parent.send("held");
    parent.recv::<()>();
}

#[test]
fn the_permits_of_the_dead_go_to_those_who_wait() {
    in_time(|| {
        let semaphore = Semaphore::new(5).unwrap();
        let mut holders = [child("semaphore: hold", &(&semaphore, 2)), child("semaphore: hold", &(&semaphore, 3))];
        holders.iter().for_each(|holder| holder.expect("held"));
        assert_eq!(semaphore.try_acquire().unwrap_err(), SemaphoreError::WouldBlock);
        assert_eq!(semaphore.acquire_timeout(MOMENT).unwrap_err(), SemaphoreError::TimedOut);
        let mut all = pin!(semaphore.acquire_many_async(5));
        assert!(poll_once(all.as_mut()).is_pending());
        let got = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| got.fetch_add(semaphore.acquire().permits(), Ordering::Relaxed));
            }
            for holder in &mut holders {
                holder.kill();
            }
            drop(wait_for(all).unwrap());
        });
        assert_eq!((got.into_inner(), semaphore.available()), (3, 5));
    });
}

fn want(parent: &Peer) {
    let (semaphore, permits): (Semaphore, u32) = parent.recv();
    let mut future = pin!(semaphore.acquire_many_async(permits));
    assert!(poll_once(future.as_mut()).is_pending());
    parent.send("waiting");
    parent.recv::<()>();
}

#[test]
fn nobody_overtakes_the_head_of_the_line_unless_it_gives_up_or_dies() {
    in_time(|| {
        let semaphore = Semaphore::new(3).unwrap();
        let one = semaphore.acquire();
        // It gives up.
        let mut large = Box::pin(semaphore.acquire_many_async(3));
        assert!(poll_once(large.as_mut()).is_pending());
        assert_eq!(semaphore.available(), 2);
        assert_eq!(semaphore.try_acquire().unwrap_err(), SemaphoreError::WouldBlock, "overtaken");
        let mut behind = pin!(semaphore.acquire_async());
        assert!(poll_once(behind.as_mut()).is_pending(), "overtaken");
        drop(large);
        drop(wait_for(behind));
        drop(semaphore.try_acquire().unwrap());
        // Its time is up.
        assert_eq!(semaphore.acquire_many_timeout(3, MOMENT).unwrap_err(), SemaphoreError::TimedOut);
        drop(semaphore.try_acquire().unwrap());
        // It dies.
        let mut waiter = child("semaphore: want", &(&semaphore, 3));
        waiter.expect("waiting");
        assert_eq!(semaphore.try_acquire().unwrap_err(), SemaphoreError::WouldBlock, "overtaken");
        std::thread::scope(|s| {
            let behind = s.spawn(|| semaphore.acquire().permits());
            waiter.kill();
            assert_eq!(behind.join().unwrap(), 1);
        });
        drop(semaphore.try_acquire().unwrap());
        // It's served.
        let large = semaphore.acquire_many_async(3);
        drop(one);
        assert_eq!(wait_for(large).unwrap().permits(), 3);
    });
}

#[test]
fn who_wants_more_than_there_is_holds_nobody_up() {
    in_time(|| {
        let semaphore = Semaphore::new(2).unwrap();
        let mut large = Box::pin(semaphore.acquire_many_async(3));
        assert!(poll_once(large.as_mut()).is_pending());
        let one = semaphore.try_acquire().expect("the others go on");
        // Now there will be as many, and it stands at the head of the line.
        semaphore.release(1).unwrap();
        let mut attempt = || {
            assert!(poll_once(large.as_mut()).is_pending());
            semaphore.try_acquire()
        };
        until(|| attempt().is_err());
        // One is lost: it steps aside.
        one.forget();
        let mut two = None;
        until(|| {
            two = attempt().ok();
            two.is_some()
        });
        semaphore.release(1).unwrap();
        drop(two);
        assert_eq!(wait_for(large).unwrap().permits(), 3);
        // The same for a thread, which must be woken to step aside.
        std::thread::scope(|s| {
            let one = semaphore.acquire();
            let large = s.spawn(|| semaphore.acquire_many(3).unwrap().permits());
            until(|| semaphore.try_acquire().is_err());
            one.forget();
            until(|| semaphore.try_acquire().is_ok());
            semaphore.release(1).unwrap();
            assert_eq!(large.join().unwrap(), 3);
        });
        let bounded = BoundedSemaphore::new(2).unwrap();
        assert_eq!(
            bounded.acquire_many_timeout(3, MOMENT).unwrap_err(),
            SemaphoreError::TooMany { wanted: 3, bound: 2 },
            "it can never be"
        );
        assert!(wait_for(bounded.acquire_many_async(3)).is_err());
    });
}

#[test]
fn permits_can_be_released_by_others_but_a_bound_holds() {
    in_time(|| {
        let semaphore = Semaphore::new(0).unwrap();
        semaphore.release(2).unwrap();
        assert_eq!(semaphore.available(), 2);
        semaphore.acquire_many(2).unwrap().forget();
        assert_eq!(semaphore.available(), 0);
        semaphore.release(u32::MAX).unwrap();
        assert!(matches!(semaphore.release(1), Err(SemaphoreError::NotAcquired { released: 1, outstanding: 0 })));

        let bounded = BoundedSemaphore::new(3).unwrap();
        let held = bounded.acquire();
        bounded.acquire().forget();
        let error = bounded.release(2).unwrap_err();
        assert_eq!(error, SemaphoreError::NotAcquired { released: 2, outstanding: 1 });
        assert_eq!(bounded.available(), 1, "nothing was to change");
        bounded.release(1).unwrap();
        assert!(bounded.release(1).is_err(), "what a guard holds isn't to be released by others");
        drop(held);
        assert_eq!(bounded.available(), 3);
        assert_eq!(bounded.acquire_many(4).unwrap_err(), SemaphoreError::TooMany { wanted: 4, bound: 3 });
        assert_eq!(bounded.try_acquire_many(4).unwrap_err(), SemaphoreError::TooMany { wanted: 4, bound: 3 });
        assert!(BoundedSemaphore::new(0).is_err());
    });
}

#[test]
fn many_tasks_on_one_thread_take_turns() {
    let semaphore = Semaphore::new(3).unwrap();
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    on_one_thread(async {
        let all = (0..200).map(|n| {
            let (semaphore, inside, most) = (&semaphore, &inside, &most);
            async move {
                let permit = semaphore.acquire_many_async(1 + n % 3).await.unwrap();
                most.fetch_max(
                    inside.fetch_add(permit.permits(), Ordering::Relaxed) + permit.permits(),
                    Ordering::Relaxed,
                );
                tokio::task::yield_now().await;
                inside.fetch_sub(permit.permits(), Ordering::Relaxed);
            }
        });
        futures_util::future::join_all(all).await;
    });
    assert_eq!(most.into_inner(), 3);
    assert_eq!(semaphore.available(), 3);
}
