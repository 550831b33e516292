//! The process pool beside its peers, one row a promise: what is measured, against whom, and the goal.
//!
//! `pools` itself answers how executors compare on one workload; this program answers whether the process pool keeps
//! what it promises, so each row is measured the way the promise is worded, some against a limit of the machine instead
//! of a peer. All contenders of a row take turns, round by round; what is printed are medians. Contenders whose names
//! begin with `bound` do only what can't be avoided, or say what a task costs whom.
//!
//! `cargo bench -p pools --bench processes [-- ROW …]` runs the rows whose names begin with one of the words. Python's
//! pools take part where `python3` is there.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use polypool::shared::{Semaphore, SharedMemory};
use polypool::{Executor as _, ExecutorExt as _, Fd, ProcessPool, Shutdown, StartMethod, TaskError, ThreadPool};
use polypool_ipc::RingSocket;
use rustix::thread::futex;
use serde_bytes::ByteBuf;

const WORKERS: usize = 2;
const LARGE: usize = 64 << 20;
/// The head of a frame and a short payload.
const FRAME: usize = 40;

#[polypool::task]
fn no_op(n: u64) -> u64 {
    n
}

#[polypool::task]
fn spin(rounds: u64) {
    for round in 0..rounds {
        std::hint::black_box(round);
    }
}

#[polypool::task]
fn echo_vec(data: Vec<u8>) -> Vec<u8> {
    data
}

#[polypool::task]
fn echo_bytes(data: Bytes) -> Bytes {
    data
}

/// Looks at memory that it was handed.
#[polypool::task]
fn last_byte(memory: SharedMemory) -> u8 {
    memory.read(memory.len() - 1).unwrap_or_default()
}

/// Sends back what comes through bare rings, in a process of its own.
#[polypool::task]
fn ring_echo(memory: Fd, room: Fd, socket: Fd) {
    let inner = |fd: Fd| fd.into_inner().expect("a descriptor");
    let socket = UnixStream::from(inner(socket));
    let (mut reader, mut writer) = RingSocket::join(vec![inner(memory), inner(room)]).expect("rings").split();
    let mut bytes = [0; FRAME];
    while let Ok(count @ 1..) = reader.read(&socket, &mut bytes, None) {
        if writer.write(&socket, &[&bytes[..count]], None).is_err() {
            return;
        }
    }
}

/// As [`PingPong`], with another process on the other side.
#[polypool::task]
fn semaphore_echo(there: Semaphore, back: Semaphore) {
    loop {
        there.acquire().forget();
        if back.release(1).is_err() {
            return;
        }
    }
}

#[polypool::task]
fn spin_many(rounds: u64, times: u64) {
    (0..times).for_each(|_| spin(rounds));
}

#[polypool::task]
fn nap(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Dies, and leaves the time at which it did.
#[polypool::task]
fn die(at: polypool::shared::AtomicValue<u64>) {
    at.store(since_epoch(), Ordering::SeqCst);
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

fn since_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Set for a process that says that it is there, and ends.
const ENDS: &str = "BENCH_ENDS";

fn main() -> Result<()> {
    if std::env::var_os(ENDS).is_some() {
        return Ok(writeln!(std::io::stdout(), "!")?);
    }
    procspawn::init();
    polypool::init();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let rows: &[(&str, MakeRow)] = &[
        ("one-by-one", one_by_one),
        ("map-chunks", map_chunks),
        ("trip-busy", trip_busy),
        ("trip-slept", trip_slept),
        ("large-bytes", large_bytes),
        ("large-shared", large_shared),
        ("start", start),
        ("death", death),
        ("replacement", replacement),
        ("cpu-10us", cpu_10us),
        ("costs-one-by-one", costs_one_by_one),
        ("costs-map-chunks", costs_map_chunks),
        ("costs-10us", costs_10us),
        ("memory", memory),
    ];
    for (name, row) in rows {
        if wanted.is_empty() || wanted.iter().any(|word| name.starts_with(word.as_str())) {
            row().with_context(|| format!("the row {name}"))?.measure(name)?;
        }
    }
    Ok(())
}

// ---- Rows ------------------------------------------------------------------------------------------------------------

/// Prepares a row.
type MakeRow = fn() -> Result<Row>;

/// One contender: its name, and what measures it once.
type Contender = (&'static str, Box<dyn FnMut() -> Result<f64>>);

/// What is compared. The first contender is ours, the last ones are those it's compared with.
struct Row {
    unit: &'static str,
    more_is_better: bool,
    rounds: usize,
    goal: &'static str,
    contenders: Vec<Contender>,
}

impl Row {
    fn measure(mut self, name: &str) -> Result<()> {
        let mut values = vec![Vec::new(); self.contenders.len()];
        for _ in 0..self.rounds {
            for ((who, run), values) in self.contenders.iter_mut().zip(&mut values) {
                values.push(run().with_context(|| format!("measuring {who}"))?);
            }
        }
        println!("{name} ({}); goal: {}", self.unit, self.goal);
        let ours = median(&mut values[0]);
        for ((who, _), values) in self.contenders.iter().zip(&mut values) {
            let value = median(values);
            let ratio = if self.more_is_better { ours / value } else { value / ours };
            let (least, most) = (values[0], values[values.len() - 1]);
            println!("  {who:<28} {value:>14.2}   [{least:.2} .. {most:.2}]   ours is {ratio:.2} x as good");
        }
        Ok(())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn contender(name: &'static str, run: impl FnMut() -> Result<f64> + 'static) -> Contender {
    (name, Box::new(run))
}

fn spawned() -> Result<ProcessPool> {
    let pool = ProcessPool::builder().workers(WORKERS).build()?;
    // Both workers are there.
    let tasks: Vec<_> = (0..WORKERS).map(|_| pool.submit(nap { millis: 50 })).collect();
    tasks.into_iter().try_for_each(|task| task.wait())?;
    Ok(pool)
}

/// Python's pools, as far as there are any.
fn pythons(plan: &str, line: String, read: fn(&str) -> Option<f64>) -> Vec<Contender> {
    ["python-multiprocessing", "python-process-pool"]
        .into_iter()
        .filter(|_| std::env::var_os("WITHOUT_PYTHON").is_none())
        .filter_map(|executor| {
            let mut python = Python::start(executor, plan).ok()?;
            let line = line.clone();
            Some(contender(executor, move || {
                let answer = python.ask(&line)?;
                read(&answer).with_context(|| format!("python said {answer}"))
            }))
        })
        .collect()
}

fn number(answer: &str) -> Option<f64> {
    answer.trim().strip_prefix("{\"seconds\": ")?.strip_suffix('}')?.parse().ok()
}

fn middle_us(answer: &str) -> Option<f64> {
    let list = answer.trim().strip_prefix("{\"nanoseconds\": [")?.strip_suffix("]}")?;
    let mut values: Vec<f64> = list.split(", ").filter_map(|value| value.parse().ok()).collect();
    Some(median(&mut values) / 1e3)
}

/// `runner.py` of `pools`.
struct Python {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Python {
    fn start(executor: &str, plan: &str) -> Result<Self> {
        let plan = format!("{{\"executor\": \"{executor}\", \"workers\": {WORKERS}, \"wait_s\": 0, {plan}}}");
        let mut child = Command::new("python3")
            .args(["-c", include_str!("../src/runner.py"), &plan])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut python = Python { child, requests, answers };
        // Its workers are there, and it can do what is asked for.
        python.ask("batch 2")?;
        Ok(python)
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.requests.as_mut().context("no stdin")?, "{line}")?;
        let mut answer = String::new();
        ensure!(self.answers.read_line(&mut answer)? > 0, "python has ended");
        Ok(answer)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It ends with its requests, and its workers with it, which would outlive it if it were killed.
        self.requests = None;
        let _ = self.child.wait();
    }
}

fn one_by_one() -> Result<Row> {
    const OURS: u64 = 100_000;
    const THEIRS: u64 = 4_000;
    let pool = spawned()?;
    let peer = procspawn::Pool::new(WORKERS)?;
    let mut contenders = vec![
        contender("polypool", move || {
            let start = Instant::now();
            let tasks: Vec<_> = (0..OURS).map(|n| pool.submit(no_op { n })).collect();
            for (n, task) in (0..).zip(tasks) {
                ensure!(task.wait()? == n);
            }
            Ok(OURS as f64 / start.elapsed().as_secs_f64())
        }),
        contender("procspawn", move || {
            let start = Instant::now();
            let tasks: Vec<_> = (0..THEIRS).map(|n| procspawn::spawn!(in peer, (n) || n)).collect();
            for (n, task) in (0..).zip(tasks) {
                ensure!(task.join()? == n);
            }
            Ok(THEIRS as f64 / start.elapsed().as_secs_f64())
        }),
    ];
    let plan = "\"workload\": \"no-op\", \"window\": 1000000000";
    contenders.extend(pythons(plan, format!("batch {THEIRS}"), |answer| Some(THEIRS as f64 / number(answer)?)));
    Ok(Row { unit: "tasks/s", more_is_better: true, rounds: 7, goal: ">= 2 M/s, >= 60 x the best peer", contenders })
}

fn map_chunks() -> Result<Row> {
    const OURS: u64 = 2_000_000;
    const THEIRS: u64 = 200_000;
    let pool = spawned()?;
    let mut contenders = Vec::new();
    for (name, chunk) in [("polypool, chunks of 1024", 1_024), ("polypool, chunks of 100", 100)] {
        let pool = pool.clone();
        contenders.push(contender(name, move || {
            let start = Instant::now();
            let results = pool.map((0..OURS).map(|n| no_op { n })).chunk_size(chunk).buffer(32 * chunk).blocking();
            let sum: u64 = results.sum::<Result<u64, TaskError>>()?;
            ensure!(sum == OURS * (OURS - 1) / 2);
            Ok(OURS as f64 / start.elapsed().as_secs_f64())
        }));
    }
    contenders.push(contender("bound: rmp-serde, one thread", || {
        // What crosses the border, there and back, as the library does it that the codec is built on.
        const CHUNK: u64 = 1_024;
        let start = Instant::now();
        let mut sum = 0;
        for first in (0..OURS).step_by(CHUNK as usize) {
            let calls: Vec<no_op> = (first..OURS.min(first + CHUNK)).map(|n| no_op { n }).collect();
            let calls: Vec<no_op> = rmp_serde::from_slice(&rmp_serde::to_vec(&calls)?)?;
            let results: Vec<u64> = calls.into_iter().map(|call| no_op(call.n)).collect();
            let results: Vec<u64> = rmp_serde::from_slice(&rmp_serde::to_vec(&results)?)?;
            sum += results.iter().sum::<u64>();
        }
        ensure!(sum == OURS * (OURS - 1) / 2);
        Ok(OURS as f64 / start.elapsed().as_secs_f64())
    }));
    let plan = "\"workload\": \"map-chunks\", \"window\": 1, \"chunk\": 1024";
    contenders.extend(pythons(plan, format!("batch {THEIRS}"), |answer| Some(THEIRS as f64 / number(answer)?)));
    Ok(Row { unit: "items/s", more_is_better: true, rounds: 5, goal: ">= 30 M/s", contenders })
}

/// The median of `count` times, in microseconds.
fn trips<T>(count: usize, mut trip: impl FnMut() -> Result<T>, pause: Option<Duration>) -> Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
        let start = Instant::now();
        trip()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&mut times))
}

fn trip_busy() -> Result<Row> {
    let pool = spawned()?;
    let peer = procspawn::Pool::new(WORKERS)?;
    let mut contenders = vec![
        contender("polypool", move || trips(20_000, || Ok(pool.submit(no_op { n: 1 }).wait()?), None)),
        contender("procspawn", move || trips(300, || Ok(procspawn::spawn!(in peer, (1_u64 => n) || n).join()?), None)),
    ];
    let mut bare = ring_trip()?;
    contenders.push(contender("bound: bare rings", move || trips(20_000, &mut bare, None)));
    let plan = "\"workload\": \"no-op\", \"window\": 1000000000";
    contenders.extend(pythons(plan, "round-trips 300 1".to_owned(), middle_us));
    Ok(Row { unit: "p50, us", more_is_better: false, rounds: 5, goal: "<= 3 us", contenders })
}

/// A round trip through bare rings, to another process and back.
fn ring_trip() -> Result<impl FnMut() -> Result<()>> {
    let pool = ProcessPool::builder().workers(1).build()?;
    let (here, there) = UnixStream::pair()?;
    let (ours, [memory, room]) = RingSocket::create(256 << 10)?;
    // It ends with the pool, which ends with the program.
    drop(pool.submit(ring_echo { memory: memory.into(), room: room.into(), socket: Fd::new(there.into()) }));
    let (mut reader, mut writer) = ours.split();
    Ok(move || {
        let _ = &pool;
        writer.write(&here, &[&[7; FRAME]], None)?;
        ensure!(reader.read(&here, &mut [0; FRAME], None)? > 0);
        Ok(())
    })
}

/// A round trip from one semaphore to the other and back, between processes.
fn semaphore_trip() -> Result<impl FnMut() -> Result<()>> {
    let pool = ProcessPool::builder().workers(1).build()?;
    let (there, back) = (Semaphore::new(0)?, Semaphore::new(0)?);
    drop(pool.submit(semaphore_echo { there: there.clone(), back: back.clone() }));
    Ok(move || {
        let _ = &pool;
        there.release(1)?;
        back.acquire().forget();
        Ok(())
    })
}

/// Two threads that wake each other, with words that processes could share.
struct PingPong {
    words: [AtomicU32; 2],
}

impl PingPong {
    fn start() -> &'static Self {
        let this: &PingPong = Box::leak(Box::new(PingPong { words: [AtomicU32::new(0), AtomicU32::new(0)] }));
        std::thread::spawn(move || {
            for turn in 0.. {
                this.await_turn(0, turn);
                this.next(1);
            }
        });
        this
    }

    fn await_turn(&self, word: usize, last: u32) {
        while self.words[word].load(Ordering::Acquire) == last {
            let _ = futex::wait(&self.words[word], futex::Flags::empty(), last, None);
        }
    }

    fn next(&self, word: usize) {
        self.words[word].fetch_add(1, Ordering::Release);
        let _ = futex::wake(&self.words[word], futex::Flags::empty(), 1);
    }
}

/// Each trip after a pause of 3 ms, in which everybody has gone to sleep, and the core may have forgotten what it ran.
/// How much of a trip the latter is shows after pauses of 0.1 ms: enough to fall asleep, too little to forget.
fn trip_slept() -> Result<Row> {
    const PAUSE: Duration = Duration::from_millis(3);
    const SHORT: Duration = Duration::from_micros(100);
    let pool = spawned()?;
    let ping = PingPong::start();
    let (rings, semaphores) = (Rc::new(RefCell::new(ring_trip()?)), semaphore_trip()?);
    let paused = |name, pause, mut trip: Box<dyn FnMut() -> Result<()>>| {
        contender(name, move || trips(100, &mut trip, Some(pause)))
    };
    let ours = || {
        let pool = pool.clone();
        Box::new(move || {
            pool.submit(no_op { n: 1 }).wait()?;
            Ok(())
        })
    };
    let bare = || {
        let rings = rings.clone();
        Box::new(move || (*rings.borrow_mut())())
    };
    let mut turn = 0;
    let futexes = Box::new(move || {
        ping.next(0);
        ping.await_turn(1, turn);
        turn += 1;
        Ok(())
    });
    let contenders = vec![
        paused("polypool", PAUSE, ours()),
        paused("bare futex ping-pong", PAUSE, futexes),
        paused("bound: bare rings", PAUSE, bare()),
        paused("bound: bare semaphores", PAUSE, Box::new(semaphores)),
        paused("polypool, 0.1 ms", SHORT, ours()),
        paused("bound: bare rings, 0.1 ms", SHORT, bare()),
    ];
    Ok(Row { unit: "p50, us", more_is_better: false, rounds: 5, goal: "<= 1.3 x a futex ping-pong", contenders })
}

fn large_bytes() -> Result<Row> {
    // What goes in and what comes out.
    let speed = |start: Instant| Ok(2.0 * LARGE as f64 / 1e9 / start.elapsed().as_secs_f64());
    let pool = spawned()?;
    let peer = procspawn::Pool::new(WORKERS)?;
    let (vecs, blocks) = (pool.clone(), pool);
    let mut data = vec![7_u8; LARGE];
    let block = Bytes::from(vec![7_u8; LARGE]);
    let mut theirs = ByteBuf::from(vec![7_u8; LARGE]);
    let mut contenders = vec![
        contender("polypool, Vec<u8>", move || {
            let sent = std::mem::take(&mut data);
            let start = Instant::now();
            data = vecs.submit(echo_vec { data: sent }).wait()?;
            ensure!(data.len() == LARGE);
            speed(start)
        }),
        contender("polypool, Bytes", move || {
            let sent = block.clone();
            let start = Instant::now();
            let came = blocks.submit(echo_bytes { data: sent }).wait()?;
            ensure!(came.len() == LARGE);
            speed(start)
        }),
        contender("procspawn", move || {
            let sent = std::mem::take(&mut theirs);
            let start = Instant::now();
            theirs = procspawn::spawn!(in peer, (sent) || sent).join()?;
            speed(start)
        }),
    ];
    let plan = format!("\"workload\": \"payload-64mib\", \"window\": 1, \"payload\": {LARGE}");
    let read = |answer: &str| Some(2.0 * LARGE as f64 / 1e9 / number(answer)?);
    contenders.extend(pythons(&plan, "batch 1".to_owned(), read));
    Ok(Row { unit: "GB/s in and out", more_is_better: true, rounds: 7, goal: ">= 4 GB/s", contenders })
}

fn large_shared() -> Result<Row> {
    let pool = spawned()?;
    let hand_over = |pool: ProcessPool, size: usize| -> Result<_> {
        let memory = SharedMemory::new(size)?;
        memory.fill(7)?;
        Ok(move || {
            let trip = || {
                ensure!(pool.submit(last_byte { memory: memory.clone() }).wait()? == 7);
                Ok(())
            };
            trips(50, trip, None)
        })
    };
    let contenders = vec![
        contender("polypool, 64 MiB", hand_over(pool.clone(), LARGE)?),
        contender("polypool, 4 KiB", hand_over(pool, 4_096)?),
    ];
    Ok(Row { unit: "p50, us", more_is_better: false, rounds: 5, goal: "<= 200 us whatever its size", contenders })
}

fn first_result(method: StartMethod) -> Result<f64> {
    let start = Instant::now();
    let pool = ProcessPool::builder().workers(WORKERS).start_method(method).build()?;
    pool.submit(no_op { n: 1 }).wait()?;
    let took = start.elapsed();
    pool.shutdown(Shutdown::Now).wait();
    Ok(took.as_secs_f64() * 1e3)
}

fn start() -> Result<Row> {
    let python = |code: &'static str| {
        move || {
            let code = format!("import time\n{code}\nprint((time.perf_counter() - start) * 1e3)");
            let output = Command::new("python3").args(["-c", &code]).stderr(Stdio::null()).output()?;
            String::from_utf8_lossy(&output.stdout).trim().parse().context("no number came")
        }
    };
    let mut contenders = vec![
        contender("polypool, Spawn", || first_result(StartMethod::Spawn)),
        contender("polypool, ForkServer", || first_result(StartMethod::ForkServer)),
        contender("procspawn", || {
            let start = Instant::now();
            let pool = procspawn::Pool::new(WORKERS)?;
            procspawn::spawn!(in pool, (1_u64 => n) || n).join()?;
            let took = start.elapsed();
            pool.kill();
            Ok(took.as_secs_f64() * 1e3)
        }),
        // What a start costs that does nothing but start: the same executable, to the first line of its `main`.
        contender("bound: exec", || {
            let start = Instant::now();
            let mut child = Command::new(std::env::current_exe()?).env(ENDS, "1").stdout(Stdio::piped()).spawn()?;
            let mut byte = [0];
            child.stdout.take().context("no stdout")?.read_exact(&mut byte)?;
            let took = start.elapsed();
            child.wait()?;
            Ok(took.as_secs_f64() * 1e3)
        }),
    ];
    if Command::new("python3").arg("--version").output().is_ok() {
        contenders.push(contender(
            "python-multiprocessing",
            python(
                "import multiprocessing as m\nstart = time.perf_counter()\n\
                 pool = m.get_context('fork').Pool(2)\npool.apply(abs, (1,))",
            ),
        ));
        contenders.push(contender(
            "python-process-pool",
            python(
                "import multiprocessing as m, concurrent.futures as c\nstart = time.perf_counter()\n\
                 pool = c.ProcessPoolExecutor(2, m.get_context('fork'))\npool.submit(abs, 1).result()",
            ),
        ));
    }
    Ok(Row { unit: "ms to the first result", more_is_better: false, rounds: 9, goal: "<= 3 ms with Spawn", contenders })
}

/// The time from a worker's death to the failure of its future, and from there to the result of the next task.
fn deaths(method: StartMethod) -> Result<impl FnMut() -> Result<(f64, f64)>> {
    let pool = ProcessPool::builder().workers(1).start_method(method).build()?;
    let at = polypool::shared::AtomicValue::new(0_u64)?;
    pool.submit(no_op { n: 1 }).wait()?;
    Ok(move || {
        let outcome = pool.submit(die { at: at.clone() }).wait();
        let failed = Instant::now();
        let seen = since_epoch();
        ensure!(matches!(outcome, Err(TaskError::WorkerLost(_))), "it should have died");
        pool.submit(no_op { n: 1 }).wait()?;
        Ok(((seen - at.load(Ordering::SeqCst)) as f64 / 1e6, failed.elapsed().as_secs_f64() * 1e3))
    })
}

fn death() -> Result<Row> {
    let (mut spawned, mut forked) = (deaths(StartMethod::Spawn)?, deaths(StartMethod::ForkServer)?);
    let contenders = vec![
        contender("polypool, Spawn", move || Ok(spawned()?.0)),
        contender("polypool, ForkServer", move || Ok(forked()?.0)),
    ];
    Ok(Row { unit: "ms to the failure", more_is_better: false, rounds: 15, goal: "<= 1 ms", contenders })
}

fn replacement() -> Result<Row> {
    let (mut forked, mut spawned) = (deaths(StartMethod::ForkServer)?, deaths(StartMethod::Spawn)?);
    let contenders = vec![
        contender("polypool, ForkServer", move || Ok(forked()?.1)),
        contender("polypool, Spawn", move || Ok(spawned()?.1)),
    ];
    Ok(Row { unit: "ms to the next result", more_is_better: false, rounds: 15, goal: "<= 1 ms", contenders })
}

fn cpu_10us() -> Result<Row> {
    const TASKS: u64 = 20_000;
    let rounds = calibrate() * 10;
    let (pool, bare) = (spawned()?, spawned()?);
    let threads = ThreadPool::builder().workers(WORKERS).build()?;
    let contenders = vec![
        contender("ProcessPool", move || {
            let start = Instant::now();
            let tasks: Vec<_> = (0..TASKS).map(|_| pool.submit(spin { rounds })).collect();
            tasks.into_iter().try_for_each(|task| task.wait())?;
            Ok(TASKS as f64 / start.elapsed().as_secs_f64())
        }),
        contender("bound: nothing but the work", move || {
            let start = Instant::now();
            let tasks: Vec<_> =
                (0..WORKERS).map(|_| bare.submit(spin_many { rounds, times: TASKS / WORKERS as u64 })).collect();
            tasks.into_iter().try_for_each(|task| task.wait())?;
            Ok(TASKS as f64 / start.elapsed().as_secs_f64())
        }),
        contender("ThreadPool", move || {
            let start = Instant::now();
            let tasks: Vec<_> = (0..TASKS).map(|_| threads.submit(spin { rounds })).collect();
            tasks.into_iter().try_for_each(|task| task.wait())?;
            Ok(TASKS as f64 / start.elapsed().as_secs_f64())
        }),
    ];
    Ok(Row { unit: "tasks/s", more_is_better: true, rounds: 9, goal: ">= 0.9 x the thread pool", contenders })
}

/// Who spends how much processor time on a task, in nanoseconds. Where all cores are busy, the sum is what bounds the
/// pool: so many tasks are done in a second as the cores have seconds for that sum.
fn costs(pool: ProcessPool, work: impl Fn(&ProcessPool) -> Result<u64> + Clone + 'static) -> Row {
    let part = |name, which: fn(&Costs) -> f64| {
        let (pool, work) = (pool.clone(), work.clone());
        contender(name, move || {
            let before = Costs::so_far(&pool)?;
            let tasks = work(&pool)? as f64;
            let after = Costs::so_far(&pool)?;
            Ok((which(&after) - which(&before)) / tasks)
        })
    };
    let contenders = vec![
        part("all", |costs| costs.caller + costs.supervisor + costs.workers),
        part("caller", |costs| costs.caller),
        part("supervisor", |costs| costs.supervisor),
        part("workers", |costs| costs.workers),
    ];
    Row { unit: "ns of a core a task", more_is_better: false, rounds: 5, goal: "less", contenders }
}

/// Processor time, in nanoseconds.
#[derive(Default)]
struct Costs {
    caller: f64,
    supervisor: f64,
    workers: f64,
}

impl Costs {
    fn so_far(pool: &ProcessPool) -> Result<Self> {
        let spent = |path: String| -> Result<f64> {
            let line = std::fs::read_to_string(path)?;
            Ok(line.split(' ').next().unwrap_or_default().parse()?)
        };
        let mut costs = Costs { caller: spent("/proc/thread-self/schedstat".to_owned())?, ..Costs::default() };
        for thread in std::fs::read_dir("/proc/self/task")? {
            let path = thread?.path();
            if std::fs::read_to_string(path.join("comm"))?.starts_with("polypool-super") {
                costs.supervisor += spent(path.join("schedstat").display().to_string())?;
            }
        }
        for pid in pool.stats().workers.iter().filter_map(|worker| worker.pid) {
            costs.workers += spent(format!("/proc/{pid}/schedstat"))?;
        }
        Ok(costs)
    }
}

fn costs_one_by_one() -> Result<Row> {
    const TASKS: u64 = 100_000;
    Ok(costs(spawned()?, |pool| {
        let tasks: Vec<_> = (0..TASKS).map(|n| pool.submit(no_op { n })).collect();
        tasks.into_iter().try_for_each(|task| task.wait().map(drop))?;
        Ok(TASKS)
    }))
}

fn costs_map_chunks() -> Result<Row> {
    const ITEMS: u64 = 2_000_000;
    Ok(costs(spawned()?, |pool| {
        let results = pool.map((0..ITEMS).map(|n| no_op { n })).chunk_size(1_024).buffer(32 * 1_024).blocking();
        ensure!(results.sum::<Result<u64, TaskError>>()? == ITEMS * (ITEMS - 1) / 2);
        Ok(ITEMS)
    }))
}

fn costs_10us() -> Result<Row> {
    const TASKS: u64 = 20_000;
    let rounds = calibrate() * 10;
    Ok(costs(spawned()?, move |pool| {
        let tasks: Vec<_> = (0..TASKS).map(|_| pool.submit(spin { rounds })).collect();
        tasks.into_iter().try_for_each(|task| task.wait())?;
        Ok(TASKS)
    }))
}

/// How many rounds of `spin` take a microsecond.
fn calibrate() -> u64 {
    const ROUNDS: u64 = 1_000_000;
    let best = (0..20).map(|_| {
        let start = Instant::now();
        spin(ROUNDS);
        start.elapsed()
    });
    best.min().map_or(1, |best| (ROUNDS as f64 / (best.as_secs_f64() * 1e6)) as u64).max(1)
}

fn memory() -> Result<Row> {
    const TASKS: u64 = 1_000_000;
    let resident = || -> Result<f64> {
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let pages: f64 = statm.split(' ').nth(1).context("no second word")?.parse()?;
        Ok(pages * rustix::param::page_size() as f64)
    };
    let contenders = vec![contender("polypool", move || {
        let pool = ProcessPool::builder().workers(1).build()?;
        // Nothing else runs meanwhile, and little is sent ahead.
        let first = pool.submit(nap { millis: 60_000 });
        while !first.is_running() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut tasks = VecDeque::with_capacity(TASKS as usize);
        tasks.extend((0..TASKS).map(|_| None));
        let before = resident()?;
        for (n, task) in (0..).zip(&mut tasks) {
            *task = Some(pool.submit(no_op { n }));
        }
        let after = resident()?;
        pool.shutdown(Shutdown::Now).wait();
        Ok((after - before) / TASKS as f64)
    })];
    Ok(Row { unit: "bytes a queued task", more_is_better: false, rounds: 1, goal: "<= 200", contenders })
}
