//! The locks and their relatives: between threads, between tasks on one thread, and between processes that are killed
//! in the middle.

#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "../common/family.rs"]
mod family;

mod barrier;
mod condvar;
mod event;
mod forked;
mod mutex;
mod once;
mod reentrant;
mod rwlock;
mod semaphore;
mod stopped;
mod tidiness;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use family::Peer;

/// What a child process can be.
type Role = (&'static str, fn(&Peer));

polypool_ipc::before_main!(roles);

fn roles() {
    let mut all: Vec<Role> = Vec::new();
    for roles in [
        barrier::ROLES,
        condvar::ROLES,
        event::ROLES,
        forked::ROLES,
        mutex::ROLES,
        once::ROLES,
        reentrant::ROLES,
        rwlock::ROLES,
        semaphore::ROLES,
        stopped::ROLES,
        tidiness::ROLES,
    ] {
        all.extend_from_slice(roles);
    }
    family::run_roles(&all);
}

/// A short time, for waits that are to be in vain.
const MOMENT: Duration = Duration::from_millis(20);

/// Runs a test, and ends the process if it takes longer than anything may.
#[track_caller]
fn in_time(test: impl FnOnce()) {
    let (done, running) = mpsc::channel::<()>();
    let place = std::panic::Location::caller();
    std::thread::spawn(move || {
        if running.recv_timeout(family::LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the test at {place} hangs");
            std::process::abort();
        }
    });
    test();
    drop(done);
}

/// Runs tasks on one thread.
#[track_caller]
fn on_one_thread<F: Future>(future: F) -> F::Output {
    let mut output = None;
    in_time(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        output = Some(runtime.block_on(future));
    });
    output.unwrap()
}

/// One poll, whose waker wakes nobody.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits until it is so, for what gives no other sign. The watchdog of the test sees to the end.
fn until(mut it_is_so: impl FnMut() -> bool) {
    while !it_is_so() {
        std::thread::yield_now();
    }
}

/// Blocks on a future without any runtime.
fn wait_for<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
