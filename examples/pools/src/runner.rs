//! The side that is measured: a process of its own for one executor and one workload, which does what it is told by
//! lines on standard input and answers with lines of JSON.
//!
//! | request | what it does | answer |
//! | --- | --- | --- |
//! | `batch N` | submits N tasks one by one, then collects their results | `{"seconds": …}` |
//! | `round-trips N SECONDS` | submits a task, waits for its result, N times but no longer than so many seconds | `{"nanoseconds": […]}` |
//!
//! A result that is wrong, and a failure where there should be none, is answered with `{"error": "…"}`. The runner ends
//! with its standard input, and so with the program that started it, whatever ended that. `runner.py` does the same.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use polypool::{Executor as _, ProcessPool, Shutdown, StartMethod, Task};
use serde::{Deserialize, Serialize};

use crate::executor::{AsyncTask, Blocking, Executor, Peer, Sequential, Tokio, rayon_pool, rusty_pool};
use crate::workload::{CHUNK, PRIME, Workload, block, crashes, echo, is_prime, no_op, pause, sometimes_crash, spin};

/// What a runner is started for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) executor: Executor,
    pub(crate) workload: Workload,
    pub(crate) workers: usize,
    /// How many rounds of the loop a task that computes takes.
    pub(crate) spin_rounds: u64,
    // For runner.py, so that these are said in one place.
    pub(crate) wait_s: f64,
    pub(crate) payload: usize,
    pub(crate) window: usize,
    pub(crate) prime: u64,
    pub(crate) chunk: usize,
}

impl Plan {
    pub(crate) fn new(executor: Executor, workload: Workload, workers: usize, rounds_per_us: f64) -> Self {
        let cpu = workload.cpu().unwrap_or_default();
        let window = match executor {
            // Its submit waits for a worker to read arguments that don't fit into a socket, and its workers wait for
            // somebody to take their results: with more such tasks than workers, for ever.
            Executor::Procspawn if workload.payload() >= Some(1 << 20) => workload.window().min(workers),
            _ => workload.window(),
        };
        Plan {
            executor,
            workload,
            workers,
            spin_rounds: ((cpu.as_secs_f64() * 1e6 * rounds_per_us) as u64).max(1),
            wait_s: workload.wait().unwrap_or_default().as_secs_f64(),
            payload: workload.payload().unwrap_or_default(),
            window,
            prime: PRIME,
            chunk: if workload == Workload::MapChunks { CHUNK } else { 1 },
        }
    }
}

/// What a runner answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Seconds(f64),
    Nanoseconds(Vec<u64>),
    Error(String),
}

/// Serves requests until standard input ends.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let workers = plan.workers;
    match plan.executor {
        Executor::Sequential => serve(&Sequential::new()?, plan),
        Executor::ThreadPool => serve(&polypool::ThreadPool::builder().workers(workers).build()?, plan),
        Executor::ProcessPoolSpawn => serve_on_processes(StartMethod::Spawn, plan),
        Executor::ProcessPoolForkServer => serve_on_processes(StartMethod::ForkServer, plan),
        Executor::Rayon => serve(&rayon_pool(workers)?, plan),
        Executor::TokioSpawn => serve(&Tokio::new(workers, false)?, plan),
        Executor::TokioSpawnBlocking => serve(&Tokio::new(workers, true)?, plan),
        Executor::ThreadpoolCrate => serve(&threadpool::ThreadPool::new(workers), plan),
        Executor::RustyPool => serve(&rusty_pool(workers), plan),
        Executor::Blocking => serve(&Blocking, plan),
        Executor::AsyncTask => serve(&AsyncTask::new(workers), plan),
        Executor::Procspawn => serve(&procspawn::Pool::new(workers)?, plan),
        Executor::PythonThreadPool | Executor::PythonProcessPool | Executor::PythonMultiprocessing => {
            bail!("{} is run by runner.py", plan.executor.name())
        }
    }
}

fn serve_on_processes(method: StartMethod, plan: &Plan) -> Result<()> {
    let pool = ProcessPool::builder().workers(plan.workers).start_method(method).build()?;
    let served = serve(&pool, plan);
    // Waits for the ends of the workers.
    pool.shutdown(Shutdown::Drain).wait();
    served
}

fn serve(peer: &impl Peer, plan: &Plan) -> Result<()> {
    match plan.workload {
        Workload::NoOp => serve_tasks(peer, plan, |n| no_op { n }, |n, result| expect(result? == n)),
        Workload::Cpu1us | Workload::Cpu10us | Workload::Cpu100us | Workload::Cpu1ms => {
            let rounds = plan.spin_rounds;
            serve_tasks(peer, plan, |_| spin { rounds }, |_, result| result.map(drop))
        }
        Workload::Prime => serve_tasks(peer, plan, |_| is_prime { n: plan.prime }, |_, result| expect(result?)),
        Workload::Payload1KiB | Workload::Payload64KiB | Workload::Payload1MiB | Workload::Payload64MiB => {
            // A buffer that has come back goes in again, so that this measures executors and not the allocator.
            let spare = RefCell::new(Vec::new());
            let make = |_| echo { bytes: spare.borrow_mut().pop().unwrap_or_else(|| vec![7; plan.payload]) };
            let check = |_, result: Result<Vec<u8>>| {
                let bytes = result?;
                expect(bytes.len() == plan.payload && bytes.last() == Some(&7))?;
                spare.borrow_mut().push(bytes);
                Ok(())
            };
            serve_tasks(peer, plan, make, check)
        }
        Workload::Io1ms | Workload::Io10ms => {
            let wait = Duration::from_secs_f64(plan.wait_s);
            serve_tasks(peer, plan, |_| block { wait }, |_, result| result)
        }
        Workload::AsyncWait => {
            let wait = Duration::from_secs_f64(plan.wait_s);
            serve_tasks(peer, plan, |_| pause { wait }, |_, result| result)
        }
        Workload::Crash => {
            let check = |n, result: Result<u64>| match result {
                Ok(m) => expect(m == n && !crashes(n)),
                Err(_) if crashes(n) => Ok(()),
                Err(error) => Err(error.context("a task that should not crash failed")),
            };
            serve_tasks(peer, plan, |n| sometimes_crash { n }, check)
        }
        Workload::Map | Workload::MapChunks => serve_requests(|items| {
            let sum = items.clone().sum::<u64>();
            expect(peer.map(items, plan.chunk)? == sum)
        }),
    }
}

fn serve_tasks<P: Peer, T: Task>(
    peer: &P,
    plan: &Plan,
    make: impl Fn(u64) -> T,
    check: impl Fn(u64, Result<T::Output>) -> Result<()>,
) -> Result<()> {
    let mut pending = VecDeque::new();
    serve_requests(|numbers| {
        for n in numbers {
            if pending.len() == plan.window
                && let Some((n, handle)) = pending.pop_front()
            {
                check(n, peer.collect(handle))?;
            }
            pending.push_back((n, peer.submit(make(n))));
        }
        pending.drain(..).try_for_each(|(n, handle)| check(n, peer.collect(handle)))
    })
}

fn expect(right: bool) -> Result<()> {
    ensure!(right, "a result is wrong");
    Ok(())
}

/// `run` runs the tasks of these numbers, to the last result.
fn serve_requests(mut run: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line?, &mut run).unwrap_or_else(|error| Answer::Error(format!("{error:#}")));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

fn answer(request: &str, run: &mut impl FnMut(Range<u64>) -> Result<()>) -> Result<Answer> {
    let mut words = request.split(' ');
    let (what, number) = (words.next(), words.next().context("no number")?.parse()?);
    match what {
        Some("batch") => {
            let start = Instant::now();
            run(0..number)?;
            Ok(Answer::Seconds(start.elapsed().as_secs_f64()))
        }
        Some("round-trips") => {
            let limit = Duration::try_from_secs_f64(words.next().context("no limit")?.parse()?)?;
            let (begin, mut times) = (Instant::now(), Vec::new());
            for n in 0..number {
                let start = Instant::now();
                run(n..n + 1)?;
                times.push(u64::try_from(start.elapsed().as_nanos())?);
                if begin.elapsed() > limit {
                    break;
                }
            }
            Ok(Answer::Nanoseconds(times))
        }
        _ => bail!("{request:?} is no request"),
    }
}
