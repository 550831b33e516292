//! `Event`: one signal frees all.

use std::pin::pin;

use polypool_ipc::Event;

use crate::family::{Peer, child};
use crate::{MOMENT, in_time, on_one_thread, poll_once, until, wait_for};

pub(crate) const ROLES: &[crate::Role] = &[("event: wait", wait)];

fn wait(parent: &Peer) {
    let (go, done): (Event, Event) = parent.recv();
    assert!(!go.is_set());
    parent.send("waiting");
    go.wait();
    done.set();
}

#[test]
fn a_signal_frees_all_who_wait_in_all_processes() {
    in_time(|| {
        let go = Event::new().unwrap();
        let children: Vec<_> = (0..2)
            .map(|_| {
                let done = Event::new().unwrap();
                (child("event: wait", &(&go, &done)), done)
            })
            .collect();
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| go.wait());
            }
            let mut future = pin!(go.wait_async());
            assert!(poll_once(future.as_mut()).is_pending());
            children.iter().for_each(|(child, _)| child.expect("waiting"));
            assert!(!children[0].1.is_set());
            go.set();
            wait_for(future);
        });
        for (child, done) in children {
            done.wait();
            child.join();
        }
    });
}

#[test]
fn waiting_says_whether_it_was_set() {
    in_time(|| {
        let event = Event::new().unwrap();
        assert!(!event.wait_timeout(MOMENT) && !event.try_wait());
        event.set();
        event.set();
        assert!(event.is_set() && event.try_wait() && event.wait_timeout(MOMENT));
        event.wait();
        event.clear();
        assert!(!event.is_set() && !event.wait_timeout(MOMENT));
    });
}

#[test]
fn a_signal_taken_back_at_once_frees_those_who_were_waiting() {
    in_time(|| {
        let event = Event::new().unwrap();
        for _ in 0..100 {
            let mut polled = pin!(event.wait_async());
            assert!(poll_once(polled.as_mut()).is_pending());
            let not_polled = event.wait_async();
            event.set();
            event.clear();
            wait_for(polled);
            wait_for(not_polled);
            assert!(poll_once(pin!(event.wait_async())).is_pending(), "this one came too late");
        }
    });
}

#[test]
fn two_take_turns_by_events() {
    in_time(|| {
        let (ping, pong) = (Event::new().unwrap(), Event::new().unwrap());
        std::thread::scope(|s| {
            s.spawn(|| {
                for _ in 0..2_000 {
                    ping.wait();
                    ping.clear();
                    pong.set();
                }
            });
            for _ in 0..2_000 {
                ping.set();
                pong.wait();
                pong.clear();
            }
        });
    });
}

#[test]
fn many_tasks_on_one_thread_are_freed() {
    let event = Event::new().unwrap();
    on_one_thread(async {
        let waits = futures_util::future::join_all((0..500).map(|_| event.wait_async()));
        let sets = async {
            tokio::task::yield_now().await;
            event.set();
        };
        futures_util::future::join(waits, sets).await;
    });
    until(|| event.is_set());
}
