//! The goals of the thread pool, measured beside its peers in one process: `cargo bench -p pools --bench threads [ROW…]`. With
//! `--alone` the peers are left out, which is for profiles.
//!
//! Each row is measured in rounds in which all contenders take turns (A B C A B C …); what is shown is the median of the
//! rounds, with the goal beside it. It takes a minute or so. What a task costs in memory is in `threads_memory.rs`,
//! because an allocator that counts would change the times here. The program `pools` is for whole workloads and for
//! reports; this is for whoever works on the pool.

use std::collections::VecDeque;
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_ext::{All, as_completed, wait};
use futures_util::stream::{FuturesUnordered, StreamExt};
use polypool::{ExecutorExt, TaskFuture, ThreadPool, wait_all};
use rayon::prelude::*;
use tokio::sync::oneshot;

/// Workers of every contender.
const WORKERS: usize = 2;
const MILLION: usize = 1_000_000;

/// Some 25 nanoseconds.
#[polypool::task]
fn cheap(n: u64) -> u64 {
    (0..12).fold(n, |x, _| (x ^ x >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn main() {
    // The crate `blocking` takes its size from there, at its first use; otherwise it has hundreds of threads.
    const BLOCKING: &str = "BLOCKING_MAX_THREADS";
    if std::env::var_os(BLOCKING).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().expect("this program"));
        again.args(std::env::args_os().skip(1)).env(BLOCKING, WORKERS.to_string());
        std::process::exit(again.status().expect("a program that runs twice").code().unwrap_or(1));
    }
    // `cargo bench` gives `--bench`; the rest are names of rows, or parts of them.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let alone = std::env::args().any(|arg| arg == "--alone");
    println!("{:<46} {:<26} {:>14} {:>10}", "row", "contender", "median", "spread");
    for mut row in rows() {
        if alone {
            row.contenders.truncate(1);
            row.figure = |_| "alone".to_owned();
        }
        if wanted.is_empty() || wanted.iter().any(|part| row.name.contains(part.as_str())) {
            row.measure();
        }
    }
}

/// Somebody's name, and what measures him once.
type Contender = (&'static str, Box<dyn FnMut() -> f64>);

/// A line of the table of goals.
struct Row {
    name: &'static str,
    goal: &'static str,
    rounds: usize,
    unit: &'static str,
    contenders: Vec<Contender>,
    /// The figure that the goal is about, from the medians in the order of the contenders.
    figure: fn(&[f64]) -> String,
}

impl Row {
    fn measure(mut self) {
        let mut samples = vec![Vec::new(); self.contenders.len()];
        for round in 0..=self.rounds {
            for ((_, contender), samples) in self.contenders.iter_mut().zip(&mut samples) {
                let sample = contender();
                // The first round starts threads and makes the allocator get its memory.
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        let mut medians = Vec::new();
        for ((contender, _), samples) in self.contenders.iter().zip(&mut samples) {
            samples.sort_by(f64::total_cmp);
            let median = samples[samples.len() / 2];
            let spread = (samples[samples.len() - 1] - samples[0]) / median * 100.0;
            println!("{:<46} {contender:<26} {median:>9.3} {:<4} {spread:>8.0} %", self.name, self.unit);
            medians.push(median);
        }
        println!("{:<46} {}   goal: {}\n", self.name, (self.figure)(&medians), self.goal);
    }
}

fn rows() -> Vec<Row> {
    vec![no_ops(), round_trip_median(), round_trip_mean(), idle(), map_default(), efficiency(), map_single()]
        .into_iter()
        .chain([bare_trip(), bare_queue(), bare_reader()])
        .chain([1_000, 100_000, MILLION].map(|items| completed(items, false)))
        .chain([1_000, 100_000, MILLION].map(|items| completed(items, true)))
        .collect()
}

/// The best of the others, where more is better.
fn over_best(medians: &[f64]) -> String {
    format!("{:.2} x the best peer", medians[0] / medians[1..].iter().copied().fold(0.0, f64::max))
}

fn of_best(medians: &[f64]) -> String {
    format!("{:.3} of the best peer", medians[0] / medians[1..].iter().copied().fold(f64::INFINITY, f64::min))
}

// ---- The peers ---------------------------------------------------------------------------------------------------------

fn ours() -> ThreadPool {
    ThreadPool::builder().workers(WORKERS).build().expect("a pool")
}

fn rayon_pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build().expect("a pool")
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(WORKERS).build().expect("a runtime")
}

fn channel_of_async_tasks() -> crossbeam_channel::Sender<async_task::Runnable> {
    let (sender, receiver) = crossbeam_channel::unbounded::<async_task::Runnable>();
    for _ in 0..WORKERS {
        let receiver = receiver.clone();
        std::thread::spawn(move || receiver.iter().for_each(|runnable| _ = runnable.run()));
    }
    sender
}

/// Waits as peers do that have no waits of their own: it parks the thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

/// A contender made of how it submits a closure and how it collects a result, for those rows where that is all.
macro_rules! contenders {
    ($measure:ident) => {{
        let pool = ours();
        let (channel, spawning, blocking_runtime, rayon) =
            (channel_of_async_tasks(), tokio_runtime(), tokio_runtime(), rayon_pool());
        let threadpool = threadpool::ThreadPool::new(WORKERS);
        let rusty = rusty_pool::ThreadPool::new(WORKERS, WORKERS, Duration::from_secs(60));
        let contenders: Vec<Contender> = vec![
            ("ThreadPool", Box::new(move || $measure(|n| pool.spawn(move || n), |task| task.wait().expect("a value")))),
            (
                "crossbeam + async-task",
                Box::new(move || {
                    $measure(
                        |n| {
                            let queue = channel.clone();
                            let schedule = move |runnable| drop(queue.send(runnable));
                            let (runnable, handle) = async_task::spawn(async move { n }, schedule);
                            runnable.schedule();
                            handle
                        },
                        block_on,
                    )
                }),
            ),
            (
                "threadpool + oneshot",
                Box::new(move || {
                    $measure(
                        |n| {
                            let (sender, receiver) = oneshot::channel();
                            threadpool.execute(move || _ = sender.send(n));
                            receiver
                        },
                        |receiver| receiver.blocking_recv().expect("a value"),
                    )
                }),
            ),
            (
                "rayon + oneshot",
                Box::new(move || {
                    $measure(
                        |n| {
                            let (sender, receiver) = oneshot::channel();
                            rayon.spawn(move || _ = sender.send(n));
                            receiver
                        },
                        |receiver| receiver.blocking_recv().expect("a value"),
                    )
                }),
            ),
            (
                "tokio::spawn",
                Box::new(move || {
                    $measure(|n| spawning.spawn(async move { n }), |handle| block_on(handle).expect("a value"))
                }),
            ),
            (
                "tokio::spawn_blocking",
                Box::new(move || {
                    let submit = |n| blocking_runtime.spawn_blocking(move || n);
                    $measure(submit, |handle| block_on(handle).expect("a value"))
                }),
            ),
            ("blocking", Box::new(move || $measure(|n| blocking::unblock(move || n), block_on))),
            (
                "rusty_pool",
                Box::new(move || {
                    let submit = |n| rusty.evaluate(move || n);
                    $measure(submit, |handle| handle.try_await_complete().expect("a value"))
                }),
            ),
        ];
        contenders
    }};
}

// ---- The rows ----------------------------------------------------------------------------------------------------------

/// Millions of no-ops a second: submitted one by one, then collected in order.
fn flood<H>(submit: impl Fn(u64) -> H, collect: impl Fn(H) -> u64) -> f64 {
    let start = Instant::now();
    let mut handles = Vec::with_capacity(MILLION);
    handles.extend((0..MILLION as u64).map(submit));
    let sum: u64 = handles.into_iter().map(collect).sum();
    let took = start.elapsed();
    assert_eq!(sum, (MILLION as u64 - 1) * MILLION as u64 / 2);
    1.0 / took.as_secs_f64()
}

fn no_ops() -> Row {
    Row {
        name: "no-ops: submitted one by one, collected",
        goal: ">= 1.8",
        rounds: 3,
        unit: "M/s",
        contenders: contenders!(flood),
        figure: over_best,
    }
}

/// Microseconds of each round trip, sorted.
fn trips<H>(submit: impl Fn(u64) -> H, collect: impl Fn(H) -> u64) -> Vec<f64> {
    let mut trips: Vec<f64> = (0..5_000)
        .map(|n| {
            let start = Instant::now();
            assert_eq!(collect(submit(n)), n);
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    trips.sort_by(f64::total_cmp);
    trips
}

fn trip_median<H>(submit: impl Fn(u64) -> H, collect: impl Fn(H) -> u64) -> f64 {
    let trips = trips(submit, collect);
    trips[trips.len() / 2]
}

fn trip_mean<H>(submit: impl Fn(u64) -> H, collect: impl Fn(H) -> u64) -> f64 {
    let trips = trips(submit, collect);
    trips.iter().sum::<f64>() / trips.len() as f64
}

fn round_trip_median() -> Row {
    Row {
        name: "round trip of a no-op, p50",
        goal: "<= 1 us",
        rounds: 5,
        unit: "us",
        contenders: contenders!(trip_median),
        figure: |medians| format!("{:.2} us; {}", medians[0], of_best(medians)),
    }
}

fn round_trip_mean() -> Row {
    Row {
        name: "round trip of a no-op, mean",
        goal: "<= 0.25",
        rounds: 5,
        unit: "us",
        contenders: contenders!(trip_mean),
        figure: of_best,
    }
}

/// CPU time of this process, all threads, in seconds.
fn cpu() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock");
    Duration::from(time).as_secs_f64()
}

fn idle() -> Row {
    let pool = ours();
    let used = move || {
        (0..WORKERS).map(|_| pool.spawn(|| ())).collect::<Vec<_>>().into_iter().for_each(|task| task.wait().unwrap());
        std::thread::sleep(Duration::from_millis(10));
        let before = cpu();
        std::thread::sleep(Duration::from_secs(1));
        (cpu() - before) * 100.0
    };
    Row {
        name: "idle pool",
        goal: "0.0 %",
        rounds: 1,
        unit: "%",
        contenders: vec![("ThreadPool", Box::new(used))],
        figure: |medians| format!("{:.1} % of one CPU", medians[0]),
    }
}

fn milliseconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e3
}

fn map_default() -> Row {
    let (pool, rayon) = (ours(), rayon_pool());
    let ours = move || {
        milliseconds(|| {
            let results: Result<Vec<u64>, _> = pool.map((0..MILLION as u64).map(|n| cheap { n })).blocking().collect();
            assert_eq!(results.expect("values").len(), MILLION);
        })
    };
    let theirs = move || {
        milliseconds(|| {
            let results: Vec<u64> = rayon.install(|| (0..MILLION).into_par_iter().map(|n| cheap(n as u64)).collect());
            assert_eq!(results.len(), MILLION);
        })
    };
    Row {
        name: "map of 1 M cheap items, ordered, default chunks",
        goal: "<= 1.2",
        rounds: 9,
        unit: "ms",
        contenders: vec![("ThreadPool", Box::new(ours)), ("rayon par_iter", Box::new(theirs))],
        figure: of_best,
    }
}

fn map_single() -> Row {
    let pool = ours();
    let ours = move || {
        let took = milliseconds(|| {
            let results = pool.map((0..MILLION as u64).map(|n| cheap { n })).chunk_size(1).blocking();
            assert_eq!(results.map(Result::unwrap).count(), MILLION);
        });
        MILLION as f64 / took / 1e3
    };
    Row {
        name: "map with one item a task, default buffer",
        goal: ">= 12 M/s",
        rounds: 5,
        unit: "M/s",
        contenders: vec![("ThreadPool", Box::new(ours))],
        figure: |medians| format!("{:.1} M/s", medians[0]),
    }
}

/// About a microsecond of work that the compiler can't shorten.
fn microsecond(turns: u64) -> u64 {
    (0..turns).fold(black_box(turns), |x, n| black_box(x.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n))
}

fn calibrate() -> u64 {
    let turns = 10_000_000;
    let start = Instant::now();
    black_box(microsecond(turns));
    (turns as f64 * 1e-6 / start.elapsed().as_secs_f64()).round() as u64
}

fn efficiency() -> Row {
    let turns = calibrate();
    // What is ideal: as many bare threads, each with its part of the work. (Two cores that are one core's two threads are
    // not twice as fast as one.)
    let bare = move || {
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| (0..MILLION / WORKERS).for_each(|_| _ = black_box(microsecond(black_box(turns)))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let on_pool = move |collect: fn(Vec<TaskFuture<u64>>)| {
        let pool = ours();
        move || {
            let start = Instant::now();
            let mut tasks = Vec::with_capacity(MILLION);
            tasks.extend((0..MILLION).map(|_| pool.spawn(move || microsecond(black_box(turns)))));
            collect(tasks);
            start.elapsed().as_secs_f64()
        }
    };
    Row {
        name: "1 M tasks of 1 us, seconds",
        goal: ">= 0.85 with wait_all",
        rounds: 3,
        unit: "s",
        contenders: vec![
            ("wait_all", Box::new(on_pool(|tasks| _ = wait_all(tasks).wait()))),
            ("in order", Box::new(on_pool(|tasks| tasks.into_iter().for_each(|task| _ = task.wait())))),
            ("futures_ext::wait", Box::new(on_pool(|tasks| _ = wait(tasks, All, None).blocking()))),
            ("bare threads", Box::new(bare)),
        ],
        figure: |medians| {
            let efficiency = |seconds: f64| medians[3] / seconds;
            let [all, order, wait] = [0, 1, 2].map(|of| efficiency(medians[of]));
            format!("efficiency {all:.2} with wait_all, {order:.2} in order, {wait:.2} with futures_ext::wait")
        },
    }
}

fn completed(items: usize, on_tokio: bool) -> Row {
    let repeat = (100_000 / items).max(1);
    let per_item = move |run: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..repeat).for_each(|_| run());
        start.elapsed().as_secs_f64() * 1e9 / (repeat * items) as f64
    };
    let (pool, rayon, runtimes) = (ours(), rayon_pool(), [tokio_runtime(), tokio_runtime()]);
    let [mine, peers] = runtimes;
    let ours = move || {
        per_item(&mut || {
            let tasks: Vec<_> = (0..items as u64).map(|n| pool.spawn(move || n)).collect();
            let done = as_completed(tasks);
            let count = if on_tokio {
                mine.block_on(mine.spawn(done.count())).expect("a count")
            } else {
                done.blocking().count()
            };
            assert_eq!(count, items);
        })
    };
    let theirs = move || {
        per_item(&mut || {
            let tasks: FuturesUnordered<_> = (0..items as u64)
                .map(|n| {
                    let (sender, receiver) = oneshot::channel();
                    rayon.spawn(move || _ = sender.send(n));
                    tokio::task::unconstrained(receiver)
                })
                .collect();
            let count = if on_tokio {
                peers.block_on(peers.spawn(tasks.count())).expect("a count")
            } else {
                block_on(tasks.count())
            };
            assert_eq!(count, items);
        })
    };
    let name = match (items, on_tokio) {
        (1_000, false) => "as_completed, 1 k, outside",
        (100_000, false) => "as_completed, 100 k, outside",
        (_, false) => "as_completed, 1 M, outside",
        (1_000, true) => "as_completed, 1 k, on a tokio worker",
        (100_000, true) => "as_completed, 100 k, on a tokio worker",
        (_, true) => "as_completed, 1 M, on a tokio worker",
    };
    Row {
        name,
        goal: "<= 260 ns",
        rounds: 3,
        unit: "ns",
        contenders: vec![("ThreadPool", Box::new(ours)), ("rayon + FuturesUnordered", Box::new(theirs))],
        figure: |medians| format!("{:.0} ns; {}", medians[0], of_best(medians)),
    }
}

// ---- What bounds the rows ----------------------------------------------------------------------------------------------

/// The least that submits tasks one by one from one thread to two others: one allocation and two locks a task, no
/// cancellation, no panics, no context, no statistics, workers that never sleep.
struct Bare {
    queue: Mutex<VecDeque<Arc<BareCell>>>,
    is_over: AtomicBool,
}

struct BareCell {
    work: fn(u64) -> u64,
    input: u64,
    output: Mutex<Option<u64>>,
}

impl Bare {
    fn start() -> Arc<Self> {
        let bare = Arc::new(Bare { queue: Mutex::default(), is_over: AtomicBool::new(false) });
        for _ in 0..WORKERS {
            let bare = bare.clone();
            thread::spawn(move || bare.work());
        }
        bare
    }

    fn work(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let next = self.queue.lock().expect("no panics").pop_front();
            match next {
                Some(cell) => *cell.output.lock().expect("no panics") = Some((cell.work)(cell.input)),
                None => thread::yield_now(),
            }
        }
    }

    fn submit(&self, work: fn(u64) -> u64, input: u64) -> Arc<BareCell> {
        let cell = Arc::new(BareCell { work, input, output: Mutex::new(None) });
        self.queue.lock().expect("no panics").push_back(cell.clone());
        cell
    }

    fn collect(cell: &BareCell) -> u64 {
        loop {
            if let Some(output) = cell.output.lock().expect("no panics").take() {
                return output;
            }
            // Workers must not wait for the reader's lock.
            thread::sleep(Duration::from_micros(50));
        }
    }
}

fn bare_queue() -> Row {
    let turns = calibrate();
    let run = move |work: fn(u64) -> u64, input: u64| {
        let bare = Bare::start();
        let start = Instant::now();
        let mut cells = Vec::with_capacity(MILLION);
        cells.extend((0..MILLION).map(|_| bare.submit(work, input)));
        cells.into_iter().for_each(|cell| _ = black_box(Bare::collect(&cell)));
        let took = start.elapsed();
        bare.is_over.store(true, Ordering::Relaxed);
        took.as_secs_f64()
    };
    let (no_op, alone) = (
        |n| n,
        move |work: fn(u64) -> u64, input: u64| {
            let start = Instant::now();
            (0..MILLION).for_each(|_| _ = black_box(work(black_box(input))));
            start.elapsed().as_secs_f64()
        },
    );
    Row {
        name: "bound: 1 M tasks through a bare queue, seconds",
        goal: "none",
        rounds: 3,
        unit: "s",
        contenders: vec![
            ("no-ops", Box::new(move || run(no_op, 1))),
            ("tasks of 1 us", Box::new(move || run(microsecond, turns))),
            ("1 us, no queue, one thread", Box::new(move || alone(microsecond, turns))),
        ],
        figure: |medians| {
            let efficiency = medians[2] / WORKERS as f64 / medians[1];
            format!("{:.2} M/s of no-ops, efficiency {efficiency:.2} at 1 us", 1.0 / medians[0])
        },
    }
}

/// A round trip without a queue, a task or an allocation.
fn bare_trip() -> Row {
    let run = || {
        let (there, back, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    back.store(there.load(Ordering::Acquire), Ordering::Release);
                    std::hint::spin_loop();
                }
            });
            let collect = |n| {
                while back.load(Ordering::Acquire) != n + 1 {
                    std::hint::spin_loop();
                }
                n
            };
            let median = trip_median(
                |n| {
                    there.store(n + 1, Ordering::Release);
                    n
                },
                collect,
            );
            is_over.store(true, Ordering::Relaxed);
            median
        })
    };
    Row {
        name: "bound: round trip of two threads that spin, p50",
        goal: "none",
        rounds: 5,
        unit: "us",
        contenders: vec![("bare threads", Box::new(run))],
        figure: |medians| format!("{:.2} us", medians[0]),
    }
}

fn bare_reader() -> Row {
    const CHUNK: usize = 1_024;
    // What the caller of `map` does in any case: it pulls the elements, and reads the outcomes.
    let pulls_and_reads = || {
        milliseconds(|| {
            let mut tasks = (0..MILLION as u64).map(|n| cheap { n });
            let chunks = std::iter::from_fn(|| {
                let chunk: Vec<cheap> = tasks.by_ref().take(CHUNK).collect();
                (!chunk.is_empty()).then(|| black_box(chunk))
            });
            let outcomes = chunks.flatten().map(|task| Ok::<u64, polypool::TaskError>(task.n));
            assert_eq!(outcomes.collect::<Result<Vec<u64>, _>>().expect("values").len(), MILLION);
        })
    };
    let works = || milliseconds(|| (0..MILLION as u64).for_each(|n| _ = black_box(cheap(black_box(n)))));
    let both = move || {
        milliseconds(|| {
            thread::scope(|scope| {
                for part in 0..WORKERS {
                    scope.spawn(move || {
                        (part..MILLION).step_by(WORKERS).for_each(|n| _ = black_box(cheap(black_box(n as u64))));
                    });
                }
            })
        })
    };
    Row {
        name: "bound: parts of map of 1 M cheap items",
        goal: "none",
        rounds: 9,
        unit: "ms",
        contenders: vec![
            ("pulls and reads, one thread", Box::new(pulls_and_reads)),
            ("work, one thread", Box::new(works)),
            ("work, two threads", Box::new(both)),
        ],
        figure: |medians| format!("at least {:.1} ms on two CPUs", (medians[0] + medians[2] * 2.0) / 2.0),
    }
}
