//! `Once` and `OnceValue`: once, and whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

use polypool_ipc::{Mutex, Once, OnceValue, PreviousAttempt, WaitError};

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, poll_once, wait_for};

pub(crate) const ROLES: &[crate::Role] = &[("once: call", call), ("once: hang", hang)];

fn call_all(all: &[Once], count: &Mutex<u64>) {
    for once in all {
        once.call_once(|previous| {
            assert_eq!(previous, None);
            count.with(|n| *n += 1).unwrap();
        });
        assert!(once.is_completed());
    }
}

fn call(parent: &Peer) {
    let (all, count): (Vec<Once>, Mutex<u64>) = parent.recv();
    call_all(&all, &count);
}

#[test]
fn one_of_all_processes_does_it() {
    in_time(|| {
        let all: Vec<_> = (0..50).map(|_| Once::new().unwrap()).collect();
        let count = Mutex::new(0_u64).unwrap();
        let children: Vec<_> = (0..2).map(|_| child("once: call", &(&all, &count))).collect();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| call_all(&all, &count));
            }
        });
        children.into_iter().for_each(|child| child.join());
        assert_eq!(*count.lock().unwrap(), 50);
    });
}

fn hang(parent: &Peer) {
    let value: OnceValue<[u64; 4]> = parent.recv();
    value.get_or_init(|_| {
        parent.send("begun");
        parent.recv()
    });
}

#[test]
fn after_a_death_in_the_middle_the_next_one_does_it_and_is_told() {
    in_time(|| {
        let value = OnceValue::<[u64; 4]>::new().unwrap();
        let mut first = child("once: hang", &value);
        first.expect("begun");
        assert_eq!(value.try_get_or_init(|_| [0; 4]), Err(WaitError::WouldBlock));
        assert_eq!(value.get_or_init_timeout(MOMENT, |_| [0; 4]), Err(WaitError::TimedOut));
        assert_eq!((value.get(), value.set([0; 4])), (None, Err([0; 4])));
        let died = PreviousAttempt::Died(Some(first.id()));
        let compute = |previous| {
            assert_eq!(previous, Some(died));
            [7; 4]
        };
        std::thread::scope(|s| {
            let others: Vec<_> = (0..3).map(|_| s.spawn(|| value.get_or_init(compute))).collect();
            let mut future = Box::pin(value.get_or_init_async(|previous| async move { compute(previous) }));
            assert!(poll_once(future.as_mut()).is_pending());
            first.kill();
            assert_eq!(wait_for(future), [7; 4]);
            others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), [7; 4]));
        });
        assert_eq!(value.get(), Some([7; 4]));
        assert_eq!(value.set([8; 4]), Err([8; 4]));
    });
}

#[test]
fn after_a_panic_or_a_dropped_future_the_next_one_does_it() {
    in_time(|| {
        let once = Once::new().unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| once.call_once(|_| panic!("in the middle")))).is_err());
        let mut working = Box::pin(once.call_once_async(|previous| {
            assert_eq!(previous, Some(PreviousAttempt::GaveUp));
            std::future::pending()
        }));
        assert!(poll_once(working.as_mut()).is_pending());
        assert_eq!(once.try_call_once(|_| ()), Err(WaitError::WouldBlock));
        let mut waits = Box::pin(once.call_once_async(async |_| ()));
        assert!(poll_once(waits.as_mut()).is_pending());
        drop(working);
        assert!(wait_for(waits));
        assert_eq!(once.try_call_once(|_| unreachable!()), Ok(false));
        assert_eq!(once.call_once_timeout(MOMENT, |_| unreachable!()), Ok(false));
        assert!(!wait_for(once.call_once_async(async |_| unreachable!())));
    });
}
