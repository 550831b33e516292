//! The asynchronous side of a thread pool: a tokio runtime on threads of its own, started with the first asynchronous
//! task. One thread by default: for work that waits it beats several, because nothing crosses between cores.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_ext::{BlockingObserver, CancellationToken, set_blocking_observer};
use tokio::runtime::{Builder, Handle};

pub(super) struct Driver {
    runtime: Handle,
    stop: CancellationToken,
}

impl Driver {
    /// Starts the threads. `enter` is called on each of them first.
    pub(super) fn start(threads: usize, name: &str, enter: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let enter = Arc::new(enter);
        let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
        let on_start = enter.clone();
        let runtime = builder
            .enable_all()
            .worker_threads(threads)
            .thread_name(name)
            .on_thread_start(move || on_start())
            .build()?;
        let stop = CancellationToken::new();
        let driver = Driver { runtime: runtime.handle().clone(), stop: stop.clone() };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            enter();
            runtime.block_on(stop.cancelled());
            // What still runs is dropped with the runtime, at its await.
            drop(runtime);
        })?;
        Ok(driver)
    }

    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(async move {
            let mut future = pin!(future);
            // For each poll and not for the thread: tokio's own blocking threads, where waiting is right, belong to the
            // runtime as well.
            poll_fn(|cx| {
                let before = set_blocking_observer(Some(NO_BLOCKING.with(Rc::clone)));
                let poll = future.as_mut().poll(cx);
                set_blocking_observer(before);
                poll
            })
            .await;
        });
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

thread_local! {
    static NO_BLOCKING: Rc<dyn BlockingObserver> = Rc::new(NoBlocking);
}

/// An asynchronous task that blocks on another one would wait for itself; it fails loudly instead.
struct NoBlocking;

impl BlockingObserver for NoBlocking {
    fn about_to_block(&self) {
        panic!("a blocking wait inside an asynchronous task would stop all asynchronous tasks of its pool; use .await");
    }

    fn resumed(&self) {}
}
