//! Who is measured: the executors, what each can't do, and the few lines that make each of them run a task.
//!
//! Python's executors are in `runner.py`; here they have only their names.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use futures_ext::block_on;
use polypool::{ExecutorExt, ProcessPool, Run, Task, TaskFuture, ThreadPool};
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::workload::{Workload, no_op};

/// Who runs the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Executor {
    /// A plain loop, one task after another
    Sequential,
    /// polypool's ThreadPool
    ThreadPool,
    /// polypool's ProcessPool, whose workers are the program started again
    ProcessPoolSpawn,
    /// polypool's ProcessPool, whose workers are forked by a small server
    #[value(name = "process-pool-forkserver")]
    #[serde(rename = "process-pool-forkserver")]
    ProcessPoolForkServer,
    /// rayon
    Rayon,
    /// tokio::spawn
    TokioSpawn,
    /// tokio::task::spawn_blocking
    TokioSpawnBlocking,
    /// The crate threadpool
    #[value(name = "threadpool")]
    #[serde(rename = "threadpool")]
    ThreadpoolCrate,
    /// The crate rusty_pool
    RustyPool,
    /// The crate blocking
    Blocking,
    /// Threads that run async-task's tasks from a crossbeam channel
    AsyncTask,
    /// procspawn's Pool
    Procspawn,
    /// Python's ThreadPoolExecutor
    PythonThreadPool,
    /// Python's ProcessPoolExecutor
    PythonProcessPool,
    /// Python's multiprocessing.Pool
    PythonMultiprocessing,
}

impl Executor {
    /// The name on the command line and in reports.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it is one of polypool's, so that its figures are ours to keep up.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Executor::ThreadPool) || self.is_process_pool()
    }

    pub(crate) fn is_process_pool(self) -> bool {
        matches!(self, Executor::ProcessPoolSpawn | Executor::ProcessPoolForkServer)
    }

    /// Whether its tasks run in other processes, rather than in threads of this one.
    pub(crate) fn has_processes(self) -> bool {
        self.is_process_pool()
            || matches!(self, Executor::Procspawn | Executor::PythonProcessPool | Executor::PythonMultiprocessing)
    }

    /// Whether the two do the same in different ways: both on threads, or both on processes.
    pub(crate) fn competes_with(self, other: Executor) -> bool {
        let alone = [self, other].contains(&Executor::Sequential);
        !alone && self.is_ours() != other.is_ours() && self.has_processes() == other.has_processes()
    }

    pub(crate) fn is_python(self) -> bool {
        matches!(self, Executor::PythonThreadPool | Executor::PythonProcessPool | Executor::PythonMultiprocessing)
    }

    /// Why it can't run the workload, if it can't.
    pub(crate) fn cannot(self, workload: Workload) -> Option<&'static str> {
        use Executor as E;
        use Workload as W;
        Some(match (self, workload) {
            (E::ProcessPoolSpawn | E::Procspawn, _) if cfg!(not(unix)) => "it needs a Unix system",
            (E::ProcessPoolForkServer, _) if cfg!(not(target_os = "linux")) => "it needs Linux",
            (_, W::Crash) if self.is_process_pool() || self == E::Procspawn => return None,
            (E::PythonProcessPool, W::Crash) => "one crash breaks the whole pool",
            (E::PythonMultiprocessing, W::Crash) => "the result of a task that crashed never comes",
            (_, W::Crash) => "a crash would take the whole program down",
            (E::TokioSpawn, W::Io1ms | W::Io10ms) => "what blocks would hold up its runtime",
            (E::Sequential | E::TokioSpawn, W::AsyncWait) => return None,
            (_, W::AsyncWait) if !self.is_ours() => "it has no timers: a wait would hold a thread or process",
            (E::Sequential | E::ThreadPool | E::Rayon, W::Map) => return None,
            (E::Sequential, W::MapChunks) => "a plain loop has no chunks",
            (E::ThreadPool | E::Rayon, W::MapChunks) => return None,
            (E::PythonThreadPool, W::MapChunks) => "its map ignores the size of chunks",
            (_, W::Map | W::MapChunks) if !self.is_process_pool() && !self.is_python() => "it has no map",
            _ => return None,
        })
    }
}

/// What can come back from another process.
pub(crate) trait Output: Serialize + DeserializeOwned + Send + 'static {}
impl<T: Serialize + DeserializeOwned + Send + 'static> Output for T {}

/// An executor, as it is measured: tasks go in one by one, and results are collected by their handles.
pub(crate) trait Peer {
    type Handle<T: Output>;

    fn submit<T: Task>(&self, task: T) -> Self::Handle<T::Output>;

    fn collect<T: Output>(&self, handle: Self::Handle<T>) -> Result<T>;

    /// The sum of `no_op` over the items, through the executor's own `map`.
    fn map(&self, _items: std::ops::Range<u64>, _chunk: usize) -> Result<u64> {
        bail!("it has no map")
    }
}

/// What a thread of a peer does with a task.
fn call<T: Task>(task: T) -> T::Output {
    match task.run() {
        Run::Ready(output) => output,
        Run::Future(_) => unreachable!("only executors with timers are given asynchronous tasks"),
    }
}

#[derive(Debug)]
pub(crate) struct Sequential(tokio::runtime::Runtime);

impl Sequential {
    pub(crate) fn new() -> Result<Self> {
        Ok(Sequential(tokio::runtime::Builder::new_current_thread().enable_time().build()?))
    }
}

impl Peer for Sequential {
    type Handle<T: Output> = T;

    fn submit<T: Task>(&self, task: T) -> T::Output {
        if !T::IS_ASYNC {
            return call(task);
        }
        self.0.block_on(async {
            match task.run() {
                Run::Ready(output) => output,
                Run::Future(future) => future.await,
            }
        })
    }

    fn collect<T: Output>(&self, handle: T) -> Result<T> {
        Ok(handle)
    }

    fn map(&self, items: std::ops::Range<u64>, _chunk: usize) -> Result<u64> {
        Ok(items.map(|n| std::hint::black_box(no_op(n))).sum())
    }
}

/// Closures on a `ThreadPool`, as its peers take them.
impl Peer for ThreadPool {
    type Handle<T: Output> = TaskFuture<T>;

    fn submit<T: Task>(&self, task: T) -> TaskFuture<T::Output> {
        if T::IS_ASYNC { ExecutorExt::submit(self, task) } else { self.spawn(|| call(task)) }
    }

    fn collect<T: Output>(&self, handle: TaskFuture<T>) -> Result<T> {
        Ok(handle.wait()?)
    }

    fn map(&self, items: std::ops::Range<u64>, chunk: usize) -> Result<u64> {
        sum(self, items, chunk)
    }
}

impl Peer for ProcessPool {
    type Handle<T: Output> = TaskFuture<T>;

    fn submit<T: Task>(&self, task: T) -> TaskFuture<T::Output> {
        ExecutorExt::submit(self, task)
    }

    fn collect<T: Output>(&self, handle: TaskFuture<T>) -> Result<T> {
        Ok(handle.wait()?)
    }

    fn map(&self, items: std::ops::Range<u64>, chunk: usize) -> Result<u64> {
        sum(self, items, chunk)
    }
}

fn sum(pool: &impl polypool::Executor, items: std::ops::Range<u64>, chunk: usize) -> Result<u64> {
    // Four chunks for each of many workers; with chunks of one item this is what a map has anyway.
    let buffer = polypool::DEFAULT_MAP_BUFFER.max(32 * chunk);
    let results = pool.map(items.map(|n| no_op { n })).chunk_size(chunk).buffer(buffer).blocking();
    results.map(|result| result.map_err(Into::into)).sum()
}

impl Peer for rayon::ThreadPool {
    type Handle<T: Output> = oneshot::Receiver<T>;

    fn submit<T: Task>(&self, task: T) -> oneshot::Receiver<T::Output> {
        let (sender, receiver) = oneshot::channel();
        self.spawn(|| drop(sender.send(call(task))));
        receiver
    }

    fn collect<T: Output>(&self, handle: oneshot::Receiver<T>) -> Result<T> {
        Ok(handle.blocking_recv()?)
    }

    fn map(&self, items: std::ops::Range<u64>, chunk: usize) -> Result<u64> {
        // Collected first, because results in the order of the items are what the others give, too.
        // Only ranges of `usize` have chunks.
        let items = usize::try_from(items.start)?..usize::try_from(items.end)?;
        let items = items.into_par_iter().with_min_len(chunk).with_max_len(chunk);
        let results: Vec<_> = self.install(|| items.map(|n| no_op(n as u64)).collect());
        Ok(results.into_iter().sum())
    }
}

pub(crate) fn rayon_pool(workers: usize) -> Result<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(workers).build()?)
}

#[derive(Debug)]
pub(crate) struct Tokio {
    runtime: tokio::runtime::Runtime,
    blocking: bool,
}

impl Tokio {
    pub(crate) fn new(workers: usize, blocking: bool) -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(workers).max_blocking_threads(workers).enable_time().build()?;
        Ok(Tokio { runtime, blocking })
    }
}

impl Peer for Tokio {
    type Handle<T: Output> = tokio::task::JoinHandle<T>;

    fn submit<T: Task>(&self, task: T) -> Self::Handle<T::Output> {
        if self.blocking {
            return self.runtime.spawn_blocking(|| call(task));
        }
        self.runtime.spawn(async {
            match task.run() {
                Run::Ready(output) => output,
                Run::Future(future) => future.await,
            }
        })
    }

    fn collect<T: Output>(&self, handle: Self::Handle<T>) -> Result<T> {
        Ok(block_on(handle)?)
    }
}

impl Peer for threadpool::ThreadPool {
    type Handle<T: Output> = oneshot::Receiver<T>;

    fn submit<T: Task>(&self, task: T) -> oneshot::Receiver<T::Output> {
        let (sender, receiver) = oneshot::channel();
        self.execute(|| drop(sender.send(call(task))));
        receiver
    }

    fn collect<T: Output>(&self, handle: oneshot::Receiver<T>) -> Result<T> {
        Ok(handle.blocking_recv()?)
    }
}

impl Peer for rusty_pool::ThreadPool {
    type Handle<T: Output> = rusty_pool::JoinHandle<T>;

    fn submit<T: Task>(&self, task: T) -> Self::Handle<T::Output> {
        self.evaluate(|| call(task))
    }

    fn collect<T: Output>(&self, handle: Self::Handle<T>) -> Result<T> {
        handle.try_await_complete().context("the task was dropped")
    }
}

pub(crate) fn rusty_pool(workers: usize) -> rusty_pool::ThreadPool {
    rusty_pool::ThreadPool::new(workers, workers, Duration::from_secs(60))
}

/// The crate `blocking`, whose one pool takes its size from the variable [`Blocking::WORKERS`].
#[derive(Debug)]
pub(crate) struct Blocking;

impl Blocking {
    pub(crate) const WORKERS: &str = "BLOCKING_MAX_THREADS";
}

impl Peer for Blocking {
    type Handle<T: Output> = blocking::Task<T>;

    fn submit<T: Task>(&self, task: T) -> Self::Handle<T::Output> {
        blocking::unblock(|| call(task))
    }

    fn collect<T: Output>(&self, handle: Self::Handle<T>) -> Result<T> {
        Ok(block_on(handle))
    }
}

#[derive(Debug)]
pub(crate) struct AsyncTask(crossbeam_channel::Sender<async_task::Runnable>);

impl AsyncTask {
    pub(crate) fn new(workers: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded::<async_task::Runnable>();
        for _ in 0..workers {
            let receiver = receiver.clone();
            std::thread::spawn(move || receiver.iter().for_each(|runnable| _ = runnable.run()));
        }
        AsyncTask(sender)
    }
}

impl Peer for AsyncTask {
    type Handle<T: Output> = async_task::Task<T>;

    fn submit<T: Task>(&self, task: T) -> Self::Handle<T::Output> {
        let queue = self.0.clone();
        let (runnable, handle) = async_task::spawn(async { call(task) }, move |runnable| drop(queue.send(runnable)));
        runnable.schedule();
        handle
    }

    fn collect<T: Output>(&self, handle: Self::Handle<T>) -> Result<T> {
        Ok(block_on(handle))
    }
}

impl Peer for procspawn::Pool {
    type Handle<T: Output> = procspawn::JoinHandle<T>;

    fn submit<T: Task>(&self, task: T) -> Self::Handle<T::Output> {
        self.spawn(task, call::<T>)
    }

    fn collect<T: Output>(&self, handle: Self::Handle<T>) -> Result<T> {
        Ok(handle.join()?)
    }
}
