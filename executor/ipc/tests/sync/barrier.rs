//! `Barrier`: all or nobody.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};

use polypool_ipc::{Barrier, BarrierError, Mutex};

use crate::family::{LIMIT, Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, until, wait_for};

pub(crate) const ROLES: &[crate::Role] = &[("barrier: pass", pass), ("barrier: wait", wait), ("barrier: act", act)];

const PASSES: u64 = 1_000;

/// The number of the round, and how many have been let through.
type Rounds = [u64; 2];

fn pass_often(barrier: &Barrier, rounds: &Mutex<Rounds>) {
    let parties = u64::from(barrier.parties());
    for round in 0..PASSES {
        let result = barrier
            .wait_with(|| {
                rounds
                    .with(|[now, through]| {
                        assert_eq!((*now, *through), (round, round * parties), "somebody was too early or too late");
                        *now += 1;
                    })
                    .unwrap();
            })
            .unwrap();
        assert_eq!(result.is_leader(), result.index() == barrier.parties() - 1);
        rounds
            .with(|[now, through]| {
                assert_eq!(*now, round + 1, "let through before the action");
                *through += 1;
            })
            .unwrap();
        // Nobody acts again before all have counted.
        barrier.wait().unwrap();
    }
}

fn pass(parent: &Peer) {
    let (barrier, rounds): (Barrier, Mutex<Rounds>) = parent.recv();
    pass_often(&barrier, &rounds);
}

#[test]
fn a_thousand_passes_each_with_one_action() {
    in_time(|| {
        let (barrier, rounds) = (Barrier::new(4).unwrap(), Mutex::new([0_u64; 2]).unwrap());
        let children: Vec<_> = (0..2).map(|_| child("barrier: pass", &(&barrier, &rounds))).collect();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| pass_often(&barrier, &rounds));
            }
        });
        children.into_iter().for_each(|child| child.join());
        assert_eq!(*rounds.lock().unwrap(), [PASSES, 4 * PASSES]);
        assert_eq!(barrier.n_waiting(), 0);
    });
}

#[test]
fn each_has_its_own_index_and_one_leads() {
    in_time(|| {
        let barrier = Barrier::new(70).unwrap();
        let mut results: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..70).map(|_| s.spawn(|| barrier.wait().unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        results.sort_by_key(|result| result.index());
        assert!(results.iter().map(|result| result.index()).eq(0..70));
        assert_eq!(results.iter().filter(|result| result.is_leader()).count(), 1);
    });
}

#[test]
fn a_timeout_breaks_it_for_all_until_the_reset() {
    in_time(|| {
        let barrier = Barrier::new(3).unwrap();
        std::thread::scope(|s| {
            let other = s.spawn(|| barrier.wait());
            until(|| barrier.n_waiting() == 1);
            assert_eq!(barrier.wait_timeout(MOMENT), Err(BarrierError::TimedOut));
            assert_eq!(other.join().unwrap(), Err(BarrierError::TimedOut));
        });
        assert!(barrier.is_broken());
        assert_eq!(barrier.n_waiting(), 0);
        assert_eq!(barrier.wait(), Err(BarrierError::TimedOut));
        assert_eq!(barrier.try_wait(), Err(BarrierError::TimedOut));
        assert_eq!(wait_for(barrier.wait_async()), Err(BarrierError::TimedOut));
        barrier.reset();
        assert!(!barrier.is_broken());
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| barrier.wait_timeout(LIMIT).unwrap());
            }
        });
    });
}

#[test]
fn abort_and_reset_let_those_who_wait_know() {
    in_time(|| {
        let barrier = Barrier::new(3).unwrap();
        for (what, error) in
            [(Barrier::abort as fn(&Barrier), BarrierError::Aborted), (Barrier::reset, BarrierError::Reset)]
        {
            std::thread::scope(|s| {
                let others = [s.spawn(|| barrier.wait()), s.spawn(|| wait_for(barrier.wait_async()))];
                until(|| barrier.n_waiting() == 2);
                what(&barrier);
                others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Err(error)));
            });
            assert_eq!(barrier.is_broken(), error == BarrierError::Aborted);
            barrier.reset();
        }
        // Of one who looks only when the barrier is whole again, and somebody else has passed.
        let mut slow = pin!(barrier.wait_async());
        assert!(poll_once(slow.as_mut()).is_pending());
        barrier.abort();
        barrier.reset();
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| barrier.wait().unwrap());
            }
        });
        assert_eq!(wait_for(slow), Err(BarrierError::Aborted));
        // And the other way round: it was let through, and then the barrier broke.
        let barrier = Barrier::new(2).unwrap();
        let mut slow = pin!(barrier.wait_async());
        assert!(poll_once(slow.as_mut()).is_pending());
        assert!(barrier.try_wait().unwrap().is_leader());
        barrier.abort();
        barrier.reset();
        assert_eq!(wait_for(slow).unwrap().index(), 0);
    });
}

fn wait(parent: &Peer) {
    let barrier: Barrier = parent.recv();
    let _ = barrier.wait();
}

fn act(parent: &Peer) {
    let barrier: Barrier = parent.recv();
    let _ = barrier.wait_with(|| {
        parent.send("acting");
        parent.recv::<()>();
    });
}

#[test]
fn the_death_of_one_who_waits_breaks_it_and_names_the_process() {
    in_time(|| {
        let barrier = Barrier::new(5).unwrap();
        std::thread::scope(|s| {
            let before = s.spawn(|| barrier.wait());
            until(|| barrier.n_waiting() == 1);
            let mut victim = child("barrier: wait", &barrier);
            until(|| barrier.n_waiting() == 2);
            let after = [s.spawn(|| barrier.wait()), s.spawn(|| wait_for(barrier.wait_async()))];
            until(|| barrier.n_waiting() == 4);
            victim.kill();
            let died = BarrierError::Died { pid: Some(victim.id()) };
            assert_eq!(before.join().unwrap(), Err(died));
            after.into_iter().for_each(|after| assert_eq!(after.join().unwrap(), Err(died)));
            assert_eq!(barrier.why_broken(), Some(died));
            assert_eq!(barrier.wait(), Err(died));
        });
        barrier.reset();
        assert!(!barrier.is_broken());
    });
}

#[test]
fn the_death_of_the_leader_in_its_action_breaks_it() {
    in_time(|| {
        let barrier = Barrier::new(2).unwrap();
        std::thread::scope(|s| {
            let other = s.spawn(|| barrier.wait());
            until(|| barrier.n_waiting() == 1);
            let mut leader = child("barrier: act", &barrier);
            leader.expect("acting");
            // This one is of the next round, which can't begin yet.
            let next = s.spawn(|| barrier.wait());
            assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock));
            leader.kill();
            let died = BarrierError::Died { pid: Some(leader.id()) };
            assert_eq!(other.join().unwrap(), Err(died));
            assert_eq!(next.join().unwrap(), Err(died));
        });
    });
}

#[test]
fn a_panic_in_the_action_breaks_it() {
    in_time(|| {
        let barrier = Barrier::new(2).unwrap();
        std::thread::scope(|s| {
            let other = s.spawn(|| barrier.wait());
            until(|| barrier.n_waiting() == 1);
            let panic = catch_unwind(AssertUnwindSafe(|| barrier.wait_with(|| panic!("in the action"))));
            assert!(panic.is_err());
            assert_eq!(other.join().unwrap(), Err(BarrierError::ActionPanicked));
        });
    });
}

#[test]
fn a_dropped_future_takes_its_arrival_back() {
    in_time(|| {
        let barrier = Barrier::new(3).unwrap();
        let mut one = Box::pin(barrier.wait_async());
        let mut two = Box::pin(barrier.wait_async());
        assert!(poll_once(one.as_mut()).is_pending() && poll_once(two.as_mut()).is_pending());
        assert_eq!(barrier.n_waiting(), 2);
        drop(one);
        assert_eq!(barrier.n_waiting(), 1);
        assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock));
        let mut three = Box::pin(barrier.wait_async());
        assert!(poll_once(three.as_mut()).is_pending());
        assert!(!barrier.is_broken());
        assert_eq!(barrier.try_wait().unwrap().index(), 2);
        assert_eq!((wait_for(two).unwrap().index(), wait_for(three).unwrap().index()), (1, 0));
    });
}

#[test]
fn many_tasks_on_one_thread_pass_together() {
    let barrier = Barrier::new(200).unwrap();
    let actions = AtomicU32::new(0);
    on_one_thread(async {
        let tasks = (0..200).map(|_| async {
            for round in 1..=3 {
                let action = || {
                    actions.fetch_add(1, Ordering::Relaxed);
                };
                barrier.wait_async_with(action).await.unwrap();
                assert!(actions.load(Ordering::Relaxed) >= round);
            }
        });
        futures_util::future::join_all(tasks).await;
    });
    assert_eq!(actions.into_inner(), 3);
}

#[test]
fn the_number_of_parties_has_bounds() {
    assert!(Barrier::new(0).is_err() && Barrier::new(1025).is_err());
    assert!(Barrier::new(1).unwrap().try_wait().unwrap().is_leader());
    assert_eq!(Barrier::new(1024).unwrap().parties(), 1024);
}
