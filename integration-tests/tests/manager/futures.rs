//! Calls that are awaited: who reads their replies changes all the time, and none may be forgotten.

use std::pin::pin;
use std::task::{Context, Waker};

use futures_util::StreamExt as _;
use futures_util::stream;
use integration_tests::{Row, rows, seconds, within};
use polypool::manager::{BindTo, Manager, ManagerError};

use crate::common::both;

pub(crate) const ROWS: &[Row<fn()>] = rows![
    many_futures_in_flight_get_their_own_replies,
    a_future_that_is_not_polled_again_holds_up_nobody,
    a_long_wait_is_noticed_between_short_calls,
    futures_threads_and_started_calls_share_a_connection,
    dropped_futures_leave_the_others_their_replies,
    futures_end_with_the_server,
];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn many_futures_in_flight_get_their_own_replies() {
    let tcp = BindTo::Tcp { host: "127.0.0.1".to_owned(), port: 0, tls: false };
    let key = polypool::manager::AuthKey::random().unwrap();
    let managers = [Manager::start(), Manager::in_thread(), Manager::builder().bind(tcp).auth_key(key).in_thread()];
    for manager in managers {
        let manager = manager.unwrap();
        let dict = manager.dict::<u64, u64>().wait().unwrap();
        let squares: Vec<(u64, u64)> = (0..100).map(|n| (n, n * n)).collect();
        dict.extend(squares.iter().map(|(n, square)| (n, square))).wait().unwrap();
        for in_flight in [1, 2, 32] {
            let calls = stream::iter(0..2_000u64).map(|n| {
                let call = dict.get(&(n % 100));
                async move { (n, call.await) }
            });
            let got = within(seconds(60), || {
                runtime().block_on(
                    calls
                        .buffer_unordered(in_flight)
                        .map(|(n, value)| {
                            assert_eq!(value.unwrap(), Some((n % 100) * (n % 100)));
                        })
                        .count(),
                )
            });
            assert_eq!(got, 2_000);
        }
    }
}

fn a_future_that_is_not_polled_again_holds_up_nobody() {
    both(|manager| {
        let value = manager.value(&7u64).wait().unwrap();
        for _ in 0..200 {
            // It may have promised to look for replies, and never does.
            let mut forgotten = pin!(value.get());
            let _ = forgotten.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let got =
                within(seconds(20), || runtime().block_on(async { futures_util::join!(value.get(), value.get()) }));
            assert_eq!((got.0.unwrap(), got.1.unwrap()), (7, 7));
            assert_eq!(within(seconds(20), || value.get().wait()).unwrap(), 7);
        }
    });
}

fn a_long_wait_is_noticed_between_short_calls() {
    both(|manager| {
        let (queue, value) = (manager.queue::<u64>().wait().unwrap(), manager.value(&1u64).wait().unwrap());
        within(seconds(60), || {
            runtime().block_on(async {
                for round in 0..200 {
                    let putting = async {
                        value.get().await.unwrap();
                        queue.put(&round).await.unwrap();
                    };
                    let (item, ()) = futures_util::join!(queue.get(), putting);
                    assert_eq!(item.unwrap(), round);
                }
            });
        });
    });
}

fn futures_threads_and_started_calls_share_a_connection() {
    both(|manager| {
        let value = manager.value(&3u64).wait().unwrap();
        within(seconds(60), || {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..500).for_each(|_| assert_eq!(value.get().wait().unwrap(), 3)));
                }
                scope.spawn(|| {
                    for _ in 0..50 {
                        let calls: Vec<_> = (0..10).map(|_| value.get().start()).collect();
                        // Some are never waited for.
                        calls.into_iter().skip(2).for_each(|call| assert_eq!(call.wait().unwrap(), 3));
                    }
                });
                scope.spawn(|| {
                    runtime().block_on(async {
                        for _ in 0..500 {
                            assert_eq!(value.get().await.unwrap(), 3);
                        }
                    });
                });
                let calls = stream::iter(0..500).map(|_| value.get()).buffer_unordered(16);
                let got = runtime().block_on(calls.map(|value| assert_eq!(value.unwrap(), 3)).count());
                assert_eq!(got, 500);
            });
        });
    });
}

fn dropped_futures_leave_the_others_their_replies() {
    both(|manager| {
        let value = manager.value(&5u64).wait().unwrap();
        let dropping = async {
            for number in 0..300 {
                let mut calls: Vec<_> =
                    (0..4).map(|_| futures_util::future::maybe_done(Box::pin(value.get()))).collect();
                for call in &mut calls {
                    let _ = futures_util::poll!(call);
                }
                // Each of the four is at some time the one that is left.
                let mut left = calls.swap_remove(number % 4);
                drop(calls);
                (&mut left).await;
                assert_eq!(std::pin::Pin::new(&mut left).take_output().unwrap().unwrap(), 5);
            }
        };
        within(seconds(60), || runtime().block_on(dropping));
    });
}

fn futures_end_with_the_server() {
    both(|manager| {
        let event = manager.event().wait().unwrap();
        within(seconds(20), || {
            runtime().block_on(async {
                let waits = futures_util::future::join_all((0..8).map(|_| event.wait()));
                let ending = async {
                    // They have been sent: this is answered after them.
                    event.is_set().await.unwrap();
                    manager.shutdown();
                };
                let (waits, ()) = futures_util::join!(waits, ending);
                for wait in waits {
                    assert!(matches!(wait, Err(ManagerError::ServerGone { .. })));
                }
            });
        });
    });
}
