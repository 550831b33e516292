//! Runs the contestants of each row in turns, and watches how quiet the machine is meanwhile.
//!
//! Before its rounds a contestant is asked for more and more operations until they take long enough to be measured;
//! from then on each of its rounds has that number. The order changes from round to round, and the ratio of a row is
//! the median of the ratios of its rounds, so that a slower minute slows all of them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::part;
use crate::report::{Measured, Report, Rounds};
use crate::rows::{Python, ROWS, Row, Unit};

/// How long a contestant may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

const PEER: &str = include_str!("../python_peer.py");

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    rows: Vec<&'static Row>,
    json: Option<PathBuf>,
    rounds: usize,
    /// How long a round should take.
    target: Duration,
    python: bool,
}

impl Options {
    pub(crate) fn from_args(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut names = Vec::new();
        let (mut quick, mut bench, mut json) = (false, false, None);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => bench = true,
                "--quick" => quick = true,
                "--row" => names.push(args.next().ok_or("--row needs the name of a row")?),
                "--json" => json = Some(PathBuf::from(args.next().ok_or("--json needs a file")?)),
                other => {
                    return Err(format!(
                        "{other} is none of --quick, --row NAME, --json FILE; the rows are {}",
                        all_names()
                    ));
                }
            }
        }
        for name in &names {
            if !ROWS.iter().any(|row| row.name == name) {
                return Err(format!("there is no row {name}; there are {}", all_names()));
            }
        }
        let (rounds, millis) = match (bench, quick) {
            (false, _) => (1, 1),
            (_, true) => (3, 60),
            _ => (9, 180),
        };
        Ok(Options {
            rows: ROWS.iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.name)).collect(),
            json,
            rounds,
            target: Duration::from_millis(millis),
            python: bench,
        })
    }
}

fn all_names() -> String {
    ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let python = if options.python { python_version() } else { None };
    let mut report = Report::begin(cores, python.as_deref());
    for row in &options.rows {
        if row.cores > cores {
            report.skipped(row, "needs two cores");
            continue;
        }
        let measured = measure(row, options, python.is_some())?;
        report.measured(row, measured);
    }
    let failed = report.end();
    if let Some(path) = &options.json {
        fs::write(path, report.json().to_string()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("could not be measured: {}", failed.join(", "))) }
}

fn python_version() -> Option<String> {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.version.split()[0])"]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| version.trim().to_owned())
}

fn this_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

/// The program that plays the manager's parts, built by the cargo that has started this one.
fn manager() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build_manager).clone()
}

fn build_manager() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").ok_or("run it with cargo, which has to build the manager's part")?;
    let output = Command::new(cargo)
        .args(["build", "--release", "-p", "integration-tests", "--bin", "manager_bench"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "manager_bench")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| "`cargo build --release -p integration-tests --bin manager_bench` did not build it".to_owned())
}

fn measure(row: &Row, options: &Options, python: bool) -> Result<Measured, String> {
    let quiet = Quiet::begin();
    let mut contestants = [None, None, None];
    let [ours, theirs, limit] = &mut contestants;
    let mut errors = Vec::new();
    for (place, prefix) in [(ours, "ours"), (limit, "limit")] {
        let name = format!("{prefix}/{}", row.name);
        let program = if prefix == "ours" && row.name.starts_with("manager") { manager() } else { this_program() };
        let started = program.and_then(|program| Contestant::start(Command::new(program).env(part::PART, &name)));
        match started {
            Ok(contestant) => *place = contestant,
            Err(error) => errors.push(format!("{name}: {error}")),
        }
    }
    if python && row.python == Python::Measured {
        match Contestant::start(Command::new("python3").args(["-c", PEER, row.name])) {
            Ok(contestant) => *theirs = contestant,
            Err(error) => errors.push(format!("python/{}: {error}", row.name)),
        }
    }

    for (contestant, prefix) in contestants.iter_mut().zip(["ours", "python", "limit"]) {
        if let Some(running) = contestant
            && let Err(error) = running.calibrate(row.unit, options.target)
        {
            errors.push(format!("{prefix}/{}: {error}", row.name));
            *contestant = None;
        }
    }
    let mut rounds: [Rounds; 3] = Default::default();
    for round in 0..options.rounds {
        for turn in 0..3 {
            let who = (round + turn) % 3;
            let Some(running) = &mut contestants[who] else { continue };
            match running.round() {
                Ok(seconds) => rounds[who].0.push(seconds),
                Err(error) => {
                    errors.push(format!("{}/{}: {error}", ["ours", "python", "limit"][who], row.name));
                    contestants[who] = None;
                    rounds[who] = Rounds::default();
                }
            }
        }
    }
    drop(contestants);
    let [ours, python, limit] = rounds;
    Ok(Measured { ours, python, limit, others: quiet.others(), errors })
}

/// A process that measures one thing. Ended, with all that it has started, when dropped.
struct Contestant {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    /// How many operations a round has.
    count: u64,
}

impl Contestant {
    /// `None` if it says that there is nothing to measure.
    fn start(command: &mut Command) -> Result<Option<Contestant>, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("could not be started: {error}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("has no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let contestant = Contestant { child, input, lines, count: 2 };
        match contestant.line()?.as_str() {
            "ready" => Ok(Some(contestant)),
            "none" => Ok(None),
            other => Err(format!("said \"{other}\" instead of being ready")),
        }
    }

    fn line(&self) -> Result<String, String> {
        self.lines.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("did not answer for {} s", PATIENCE.as_secs()),
            RecvTimeoutError::Disconnected => "ended too early".to_owned(),
        })
    }

    fn operations(&mut self, count: u64) -> Result<Duration, String> {
        let input = self.input.as_mut().ok_or("has no input")?;
        writeln!(input, "{count}").map_err(|error| format!("ended too early: {error}"))?;
        let line = self.line()?;
        line.parse().map(Duration::from_nanos).map_err(|_| format!("said \"{line}\" instead of a time"))
    }

    /// Finds out how many operations take about `target`, and warms up.
    fn calibrate(&mut self, unit: Unit, target: Duration) -> Result<(), String> {
        if let Unit::Time(count) = unit {
            self.count = if target < Duration::from_millis(10) { 1 } else { count };
            return self.operations(1).map(drop);
        }
        loop {
            let took = self.operations(self.count)?.max(Duration::from_nanos(100));
            let factor = target.as_secs_f64() / took.as_secs_f64();
            // The first ones are slower than the rest.
            let next = (self.count as f64 * factor.clamp(0.01, 20.0)) as u64;
            // Even, for those that are shared by two.
            self.count = next.max(2).next_multiple_of(2);
            if factor < 4.0 {
                return Ok(());
            }
        }
    }

    /// Seconds for each operation of a round.
    fn round(&mut self) -> Result<f64, String> {
        let took = self.operations(self.count)?;
        Ok(took.as_secs_f64() / self.count as f64)
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // It ends with its input, and gives back what has a name; if it doesn't, it's ended.
        self.input = None;
        let until = Instant::now() + Duration::from_secs(3);
        while self.lines.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// What others do on this machine in the meantime.
struct Quiet {
    since: Instant,
    busy: f64,
    own: f64,
}

impl Quiet {
    fn begin() -> Quiet {
        Quiet { since: Instant::now(), busy: busy().unwrap_or(0.0), own: own().unwrap_or(0.0) }
    }

    /// The share of the machine that was used by others; of this process's children, only those that have ended are
    /// known.
    fn others(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let (Some(busy), Some(own)) = (busy(), own()) else { return 0.0 };
        ((busy - self.busy) - (own - self.own)).max(0.0) / (self.since.elapsed().as_secs_f64() * cores)
    }
}

fn ticks(count: u64) -> f64 {
    count as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Seconds that the cores have spent working, or being kept from it by other machines on the same hardware.
fn busy() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    // user nice system (idle iowait) irq softirq steal
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).map(|count| ticks(*count)).sum())
}

/// Seconds that this process and its children that have ended have spent working.
fn own() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    // From the third field on; the times are fields 14 to 17.
    Some(fields.get(11..15)?.iter().filter_map(|field| field.parse().ok()).map(ticks).sum())
}
