//! What `#[polypool::main]` on an `async fn main` needs at run time: a tokio runtime that the program does not have to
//! depend on itself.
//!
//! Whether this process is the program or one of its workers is decided before, by `polypool::init()`; a worker never
//! gets here.

use std::future::Future;

use tokio::runtime::Builder;

/// The runtime under an `async fn main`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    /// Several threads, one for each core unless the number is given.
    #[default]
    MultiThread,
    /// Everything on the thread of `main`.
    CurrentThread,
}

/// Builds a runtime, with input, output and timers, and runs `main` on it.
///
/// The runtime ends with `main`: futures that are still spawned on it are dropped at their next await.
///
/// # Panics
/// If `worker_threads` is 0, and if the operating system refuses the runtime its threads or its event queue.
pub fn run_main<F: Future>(flavor: Flavor, worker_threads: Option<usize>, main: F) -> F::Output {
    let mut builder = match flavor {
        Flavor::MultiThread => Builder::new_multi_thread(),
        Flavor::CurrentThread => Builder::new_current_thread(),
    };
    match worker_threads {
        Some(0) => panic!("#[polypool::main] was told worker_threads = 0; a runtime needs at least one thread"),
        Some(threads) => {
            builder.worker_threads(threads);
        }
        None => {}
    }
    match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(main),
        Err(error) => {
            panic!("#[polypool::main] could not start the tokio runtime of this program: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_runs_to_its_end_and_its_result_is_returned() {
        for flavor in [Flavor::MultiThread, Flavor::CurrentThread] {
            let result = run_main(flavor, None, async {
                tokio::task::yield_now().await;
                42
            });
            assert_eq!(result, 42);
        }
    }

    #[test]
    fn main_may_hold_what_is_not_send() {
        let local = std::rc::Rc::new(7);
        let result = run_main(Flavor::MultiThread, Some(1), async {
            tokio::task::yield_now().await;
            *local
        });
        assert_eq!(result, 7);
    }

    #[test]
    fn timers_and_sockets_are_enabled() {
        for flavor in [Flavor::MultiThread, Flavor::CurrentThread] {
            run_main(flavor, Some(2), async {
                tokio::time::sleep(std::time::Duration::ZERO).await;
                tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            });
        }
    }

    #[test]
    #[should_panic = "worker_threads = 0"]
    fn no_worker_threads_is_refused() {
        run_main(Flavor::MultiThread, Some(0), async {});
    }
}
