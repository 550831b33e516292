//! `fetch` beside the tools that people use today, on this machine, in one run: `cargo bench -p fetch`.
//!
//! Each tool fetches the same list of different URLs of 1 KiB each from a server on the loopback interface and keeps
//! the bodies; whichever of them is installed takes part. They take turns round by round, so that a noisy moment hits
//! all, and medians are compared. The server is nginx if there is one, otherwise one of our own. `--help` tells the
//! options.
//!
//! `fetch` writes a record for each URL besides. Of the others, curl and wget2 can, too: so they run once as they are
//! and once with records, as JSON and as a table.
//!
//! Two more runs are of `fetch` alone, against a server that takes its time: what they wait for can't be made faster,
//! so that they are compared with the shortest time that is possible. `--waiting` does nothing but these.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use futures_util::{StreamExt, stream};

#[derive(Debug, Parser)]
#[command(name = "compare", about = "fetch beside curl, wget2, aria2c, aiohttp and a bare loop around reqwest")]
struct Args {
    /// How many different URLs
    #[arg(long, default_value_t = 20_000)]
    urls: usize,

    /// How often each takes its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// How many requests at once
    #[arg(long, default_value_t = 64)]
    concurrency: usize,

    /// Only these, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// Only the runs against a server that takes its time
    #[arg(long, conflicts_with = "only")]
    waiting: bool,

    /// More flags for fetch itself
    #[arg(long, allow_hyphen_values = true, value_delimiter = ' ')]
    flags: Vec<String>,

    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is when it was started by itself.
#[derive(Debug, Subcommand)]
enum Role {
    /// The loop that one would write around reqwest
    #[command(hide = true)]
    Bare { list: PathBuf, directory: PathBuf, concurrency: usize },
    /// A server, where there is no nginx; each answer takes so many milliseconds
    #[command(hide = true)]
    Serve { port: u16, delay: u64 },
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    cpu: f64,
    peak: f64,
}

struct Course {
    directory: tempfile::TempDir,
    args: Args,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        Some(Role::Bare { list, directory, concurrency }) => return bare(list, directory, *concurrency),
        Some(Role::Serve { port, delay }) => return serve(*port, Duration::from_millis(*delay)),
        None => {}
    }
    ensure!(args.rounds > 0, "--rounds takes at least 1");
    let course = Course { directory: tempfile::tempdir()?, args };
    if !course.args.waiting {
        compare(&course)?;
    }
    if course.args.only.is_empty() {
        wait(&course)?;
    }
    Ok(())
}

fn compare(course: &Course) -> Result<()> {
    let port = free_port()?;
    let _server = Server::fast(course.directory.path(), port)?;
    course.lists(port)?;
    let mut results: BTreeMap<usize, (&str, Vec<Run>)> = BTreeMap::new();
    let peers =
        PEERS.iter().filter(|(name, _)| course.args.only.is_empty() || course.args.only.iter().any(|n| n == name));
    let peers: Vec<_> = peers.collect();
    for round in 0..course.args.rounds {
        for (place, &&(name, command)) in peers.iter().enumerate() {
            let out = course.directory.path().join("bodies");
            fs::create_dir_all(&out)?;
            let Some(mut command) = command(course, &out) else { continue };
            let run = measure(&mut command).with_context(|| format!("{name} failed"))?;
            let kept = count_files(&out)?;
            ensure!(kept == course.args.urls, "{name} kept {kept} bodies instead of {}", course.args.urls);
            fs::remove_dir_all(&out)?;
            eprintln!("round {}: {name:<9} {:7.0} requests/s", round + 1, course.args.urls as f64 / run.seconds);
            results.entry(place).or_insert((name, Vec::new())).1.push(run);
        }
    }
    print(&course.args, results.into_values());
    Ok(())
}

fn print<'a>(args: &Args, results: impl Iterator<Item = (&'a str, Vec<Run>)>) {
    let results: Vec<_> = results
        .map(|(name, runs)| {
            let median = |of: fn(&Run) -> f64| median(runs.iter().map(of).collect());
            (name, Run { seconds: median(|r| r.seconds), cpu: median(|r| r.cpu), peak: median(|r| r.peak) })
        })
        .collect();
    let ours = results.iter().find(|(name, _)| *name == "fetch").map(|(_, run)| *run);
    println!(
        "{} URLs of 1 KiB, {} at once, bodies kept, medians of {} rounds",
        args.urls, args.concurrency, args.rounds
    );
    println!("{:<9} {:>11} {:>18} {:>9} {:>12}", "", "requests/s", "CPU s per 10,000", "peak MiB", "fetch is");
    for (name, run) in &results {
        let ratio = ours.map_or(String::new(), |ours| format!("{:.2} x", run.seconds / ours.seconds));
        let per = args.urls as f64;
        println!("{name:<9} {:>11.0} {:>18.2} {:>9.1} {ratio:>12}", per / run.seconds, run.cpu / per * 1e4, run.peak);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How long each answer takes where `fetch` waits.
const DELAY: Duration = Duration::from_millis(100);

/// Runs that do nothing but wait, and how close to the shortest possible time they come.
const WAITS: [Wait; 2] = [
    Wait {
        name: "4 hosts x 100 URLs, sorted by host, 4 per host",
        hosts: 4,
        urls: 100,
        flag: "--per-host",
        at_once: 4,
    },
    Wait { name: "200 URLs of one host, 64 at once", hosts: 1, urls: 200, flag: "--concurrency", at_once: 64 },
];

#[derive(Debug)]
struct Wait {
    name: &'static str,
    hosts: usize,
    /// Of each host.
    urls: usize,
    /// What keeps each host to so many requests at once.
    flag: &'static str,
    at_once: usize,
}

fn wait(course: &Course) -> Result<()> {
    let port = free_port()?;
    let _server = Server::slow(port)?;
    let mut lines = Vec::new();
    for Wait { name, hosts, urls, flag, at_once } in WAITS {
        let list = course.path("slow-urls");
        let mut file = BufWriter::new(File::create(&list)?);
        for (host, url) in (0..hosts).flat_map(|host| (0..urls).map(move |url| (host, url))) {
            writeln!(file, "http://host{host}.test:{port}/{url}")?;
        }
        file.flush()?;
        let mut runs = Vec::new();
        for round in 0..course.args.rounds {
            let records = course.fresh("slow-records.jsonl");
            let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
            command.args(["--quiet", "--noproxy", "*", flag, &at_once.to_string()]).args(&course.args.flags);
            command.args(
                (0..hosts).flat_map(|host| ["--resolve".to_owned(), format!("host{host}.test:{port}:127.0.0.1")]),
            );
            command.arg("--records").arg(&records).arg("--from").arg(&list);
            let start = Instant::now();
            let status = command.stdin(Stdio::null()).status()?;
            let seconds = start.elapsed().as_secs_f64();
            ensure!(status.success(), "{name}: it ended with {status}");
            let kept = fs::read_to_string(&records)?.lines().count();
            ensure!(kept == hosts * urls, "{name}: {kept} records instead of {}", hosts * urls);
            eprintln!("round {}: {name}: {seconds:.3} s", round + 1);
            runs.push(seconds);
        }
        let (seconds, ideal) = (median(runs), DELAY.as_secs_f64() * urls.div_ceil(at_once) as f64);
        lines.push(format!("{name:<48} {seconds:>9.3} {ideal:>9.3} {:>9.2} x", seconds / ideal));
    }
    println!("answers that take {} ms each, medians of {} rounds", DELAY.as_millis(), course.args.rounds);
    println!("{:<48} {:>9} {:>9} {:>11}", "", "seconds", "ideal", "at most 1.1");
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

type Peer = (&'static str, fn(&Course, &Path) -> Option<Command>);

const PEERS: [Peer; 8] = [
    ("fetch", |course, out| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
        command.args(["--quiet", "--concurrency", &course.at_once(), "--per-host", &course.at_once()]);
        command.arg("--output-dir").arg(out).arg("--records").arg(course.fresh("records.jsonl"));
        command.args(&course.args.flags).arg("--from").arg(course.path("urls"));
        Some(command)
    }),
    ("bare", |course, out| {
        let mut command = Command::new(std::env::current_exe().ok()?);
        command.arg("bare").arg(course.path("urls")).arg(out).arg(course.at_once());
        Some(command)
    }),
    ("curl", curl),
    ("curl-json", |course, out| {
        let mut command = curl(course, out)?;
        command.args(["--write-out", "%{json}\\n"]);
        Some(command)
    }),
    ("wget2", wget2),
    ("wget2-csv", |course, out| {
        let mut command = wget2(course, out)?;
        command.arg(format!("--stats-site=csv:{}", course.fresh("records.csv").display()));
        Some(command)
    }),
    ("aria2c", |course, out| {
        let mut command = installed("aria2c")?;
        command.args([
            "--quiet",
            "--no-conf",
            "--file-allocation=none",
            "--max-concurrent-downloads",
            &course.at_once(),
        ]);
        command
            .args(["--max-connection-per-server", "16", "--input-file"])
            .arg(course.path("urls"))
            .arg("--dir")
            .arg(out);
        Some(command)
    }),
    ("aiohttp", |course, out| {
        let mut command = installed("python3")?;
        command.arg("-c").arg(AIOHTTP).arg(course.path("urls")).arg(out).arg(course.at_once());
        let mut probe = installed("python3")?;
        let there =
            probe.args(["-c", "import aiohttp"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        there.then_some(command)
    }),
];

fn curl(course: &Course, _: &Path) -> Option<Command> {
    let mut command = installed("curl")?;
    command.args(["--silent", "--parallel", "--parallel-max", &course.at_once(), "--config"]);
    command.arg(course.path("curl"));
    Some(command)
}

fn wget2(course: &Course, out: &Path) -> Option<Command> {
    let mut command = installed("wget2")?;
    command.args(["--quiet", "--no-config", "--no-robots", "--max-threads", &course.at_once(), "--input-file"]);
    command.arg(course.path("urls")).arg("--directory-prefix").arg(out);
    Some(command)
}

const AIOHTTP: &str = r#"
import asyncio, sys, aiohttp
path, out, at_once = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def worker(session, urls):
    for url in urls:
        async with session.get(url.strip()) as response:
            body = await response.read()
        with open(out + "/" + url.strip().rsplit("/", 1)[1], "wb") as file:
            file.write(body)

async def main():
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector) as session:
        with open(path) as urls:
            await asyncio.gather(*(worker(session, urls) for _ in range(at_once)))

asyncio.run(main())
"#;

impl Course {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn fresh(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        path
    }

    fn at_once(&self) -> String {
        self.args.concurrency.to_string()
    }

    /// The URLs, one a line, and what curl wants to know to keep each in a file of its own.
    fn lists(&self, port: u16) -> Result<()> {
        let mut urls = BufWriter::new(File::create(self.path("urls"))?);
        let mut curl = BufWriter::new(File::create(self.path("curl"))?);
        let out = self.path("bodies");
        for number in 0..self.args.urls {
            let url = format!("http://127.0.0.1:{port}/f{number:07}.bin");
            writeln!(urls, "{url}")?;
            writeln!(curl, "url = \"{url}\"\noutput = \"{}/f{number:07}.bin\"", out.display())?;
        }
        urls.flush()?;
        curl.flush()?;
        Ok(())
    }
}

/// A command for a program, if it is in the PATH.
fn installed(program: &str) -> Option<Command> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file()).map(Command::new)
}

/// Runs a command to its end. CPU and memory are those that the system showed of it last, up to 10 ms before the end.
fn measure(command: &mut Command) -> Result<Run> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let (mut cpu, mut peak) = (0.0, 0.0);
    let status = loop {
        if let Some((seconds, mebibytes)) = usage(child.id()) {
            (cpu, peak) = (seconds, mebibytes);
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let seconds = start.elapsed().as_secs_f64();
    ensure!(status.success(), "it ended with {status}");
    Ok(Run { seconds, cpu, peak })
}

/// CPU seconds so far and peak resident memory in MiB; see proc_pid_stat(5) and proc_pid_status(5).
fn usage(pid: u32) -> Option<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which is in parentheses and may hold anything: fields 14 and 15 of the whole.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some((ticks / 100.0, kibibytes / 1024.0))
}

fn count_files(directory: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // What begins with a dot is a tool's own.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

struct Server(Child);

impl Server {
    /// The fastest there is.
    fn fast(directory: &Path, port: u16) -> Result<Self> {
        fs::write(directory.join("body.bin"), [b'x'; 1024])?;
        // nginx may work as another user than the one who starts it.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        let child = match installed("nginx") {
            Some(mut nginx) => {
                let path = directory.display();
                // Every name is the same file: what is measured is the client.
                let config = format!(
                    "worker_processes 1; daemon off; pid {path}/pid; error_log {path}/error;\n\
                     events {{ worker_connections 4096; }}\n\
                     http {{ access_log off; keepalive_requests 100000000; sendfile on; open_file_cache max=10;\n\
                     client_body_temp_path {path}/t1; proxy_temp_path {path}/t2; fastcgi_temp_path {path}/t3;\n\
                     uwsgi_temp_path {path}/t4; scgi_temp_path {path}/t5;\n\
                     server {{ listen 127.0.0.1:{port}; root {path}; location / {{ try_files /body.bin =404; }} }} }}\n"
                );
                fs::write(directory.join("nginx.conf"), config)?;
                nginx
                    .arg("-p")
                    .arg(directory)
                    .arg("-c")
                    .arg(directory.join("nginx.conf"))
                    .stderr(Stdio::null())
                    .spawn()?
            }
            None => serving(port, Duration::ZERO)?,
        };
        Server(child).ready(port)
    }

    /// One whose answers take a while.
    fn slow(port: u16) -> Result<Self> {
        Server(serving(port, DELAY)?).ready(port)
    }

    fn ready(self, port: u16) -> Result<Self> {
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if Instant::now() > end {
                bail!("the server does not answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's own workers end with their master only if it is asked politely.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// This program as a server.
fn serving(port: u16, delay: Duration) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).args(["serve", &port.to_string(), &delay.as_millis().to_string()]).spawn()
}

fn bare(list: &Path, directory: &Path, concurrency: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let urls = BufReader::new(File::open(list)?).lines();
        let mut done = stream::iter(urls)
            .map(|url| {
                let client = client.clone();
                async move {
                    let url = url?;
                    let body = client.get(&url).send().await?.error_for_status()?.bytes().await?;
                    let name = url.rsplit('/').next().unwrap_or_default();
                    fs::write(directory.join(name), body)?;
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(concurrency);
        while let Some(outcome) = done.next().await {
            outcome?;
        }
        Ok(())
    })
}

fn serve(port: u16, delay: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let router = axum::Router::new().fallback(async move || {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            vec![b'x'; 1024]
        });
        axum::serve(listener, router).await?;
        Ok(())
    })
}
