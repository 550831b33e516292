//! What the end-to-end tests share: a server that says byte for byte what a test wants it to say, on real sockets, and
//! a way to run the program with a watchdog and read its records.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test program uses some of it

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// A run that takes longer than this hangs.
const WATCHDOG: Duration = Duration::from_secs(90);

/// What a client sent.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The number of the connection it came on, from 0.
    pub connection: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It waits for the next request.
    Keep,
    /// It is closed in order.
    Close,
    /// It is reset: what the client has not read yet may be lost.
    Reset,
}

/// A server on the loopback interface with a thread for each connection. It ends with the test's process.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// `answer` gets each request, writes whatever it likes and says how the connection goes on.
    pub fn start(answer: impl Fn(&Asked, &mut TcpStream) -> io::Result<Then> + Send + Sync + 'static) -> Self {
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let log = asked.clone();
        let mut server = Self::raw(move |number, mut stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            while let Some(mut request) = read_request(&mut reader)? {
                request.connection = number;
                log.lock().unwrap().push(request.clone());
                match answer(&request, &mut stream)? {
                    Then::Keep => {}
                    Then::Close => {
                        let _ = stream.shutdown(Shutdown::Write);
                        // Closing with unread bytes would be a reset.
                        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                        let _ = io::copy(&mut reader, &mut io::sink());
                        break;
                    }
                    Then::Reset => return reset(&stream),
                }
            }
            Ok(())
        });
        server.asked = asked;
        server
    }

    /// `serve` gets each connection as it was accepted, with its number from 0.
    pub fn raw(serve: impl Fn(usize, TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (serve, connections) = (Arc::new(serve), Arc::new(AtomicUsize::new(0)));
        let count = connections.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (serve, number) = (serve.clone(), count.fetch_add(1, Ordering::SeqCst));
                let _ = stream.set_nodelay(true);
                // A client that went away is no fault of the server.
                thread::spawn(move || serve(number, stream));
            }
        });
        Server { address, asked: Arc::default(), connections }
    }

    /// Answers every request with 200 and its path.
    pub fn echo() -> Self {
        Self::start(|asked, stream| {
            ok(stream, asked.path.as_bytes())?;
            Ok(Then::Keep)
        })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Answers what comes over a connection of HTTP/2 with the protocol's name; `seen` gets the paths.
pub async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin>(stream: S, seen: impl Fn(&str)) -> io::Result<()> {
    let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        seen(request.uri().path());
        let response = axum::http::Response::default();
        let mut body = respond.send_response(response, false).map_err(io::Error::other)?;
        body.send_data("HTTP/2".into(), true).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Makes closing it a reset.
pub fn reset(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// A whole response with status 200.
pub fn ok(stream: &mut TcpStream, body: &[u8]) -> io::Result<()> {
    respond(stream, "200 OK", &[], body)
}

/// A whole response.
pub fn respond(stream: &mut TcpStream, status: &str, headers: &[&str], body: &[u8]) -> io::Result<()> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for header in headers {
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

/// The next request of a connection; none at its end.
pub fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut asked =
        Asked { method: words.next().unwrap_or_default(), path: words.next().unwrap_or_default(), ..Asked::default() };
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line);
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        asked.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if let Some(length) = asked.header("content-length").and_then(|length| length.parse().ok()) {
        asked.body = vec![0; length];
        reader.read_exact(&mut asked.body)?;
    } else if asked.header("transfer-encoding").is_some() {
        asked.body = read_chunks(reader)?;
    }
    Ok(Some(asked))
}

fn read_chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + length + 2, 0);
        reader.read_exact(&mut body[start..])?;
        body.truncate(start + length);
        if length == 0 {
            return Ok(body);
        }
    }
}

/// All files below a directory; none if it isn't there.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Run {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// The most memory it had, in KiB.
    pub peak: u64,
}

impl Run {
    /// The records on standard output.
    pub fn records(&self) -> Vec<Value> {
        records(&self.stdout)
    }

    /// The record of a URL; there must be exactly one.
    pub fn record(&self, url: &str) -> Value {
        let mut found: Vec<_> = self.records().into_iter().filter(|record| record["url"] == url).collect();
        assert_eq!(found.len(), 1, "records of {url} in {}\n{}", self.stdout, self.stderr);
        found.remove(0)
    }

    /// The kind of the error in a URL's record; empty if there is none.
    pub fn kind(&self, url: &str) -> String {
        self.record(url)["error"]["kind"].as_str().unwrap_or_default().to_owned()
    }

    /// The message of the error in a URL's record; empty if there is none.
    pub fn message(&self, url: &str) -> String {
        self.record(url)["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// The records in a text, one a line.
pub fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The program, without what the environment of the tests might tell it.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let lower = name.to_ascii_lowercase();
        if lower.ends_with("_proxy") || lower.starts_with("fetch_") || lower == "netrc" {
            command.env_remove(name);
        }
    }
    // No config file and no .netrc.
    command.env("HOME", "/nonexistent").env_remove("XDG_CONFIG_HOME");
    command
}

/// Runs the program with these arguments.
pub fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Run {
    run_with(program().args(arguments), b"")
}

/// Runs a prepared program with this on its standard input. Panics, with the program killed, if it hangs.
pub fn run_with(command: &mut Command, input: &[u8]) -> Run {
    let input = input.to_vec();
    run_fed(command, move |stdin| stdin.write_all(&input))
}

/// The same with `feed` writing to its standard input, on a thread of its own.
pub fn run_fed(command: &mut Command, feed: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send + 'static) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().unwrap();
    thread::spawn(move || feed(&mut stdin)); // A program that has ended reads no more.
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let (start, mut peak) = (Instant::now(), 0);
    let status = loop {
        peak = peak.max(peak_memory(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > WATCHDOG {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it hangs; stdout: {}\nstderr: {}", stdout.join().unwrap(), stderr.join().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    };
    Run { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), peak }
}

/// Runs a prepared program; `started` gets its process id, `heard` what it has said on standard error so far, each time
/// there is more. Panics, with the program killed, if it hangs.
pub fn run_while(
    command: &mut Command,
    started: impl FnOnce(u32),
    mut heard: impl FnMut(&str) + Send + 'static,
) -> Run {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let stdout = collect(child.stdout.take().unwrap());
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let stderr = thread::spawn(move || {
        let mut said = Vec::new();
        while matches!(lines.read_until(b'\n', &mut said), Ok(1..)) {
            heard(&String::from_utf8_lossy(&said));
        }
        String::from_utf8_lossy(&said).into_owned()
    });
    started(child.id());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > WATCHDOG {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it hangs; stderr: {}", stderr.join().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    };
    Run { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), peak: 0 }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The high-water mark of a process's memory in KiB, as Linux counts it; elsewhere 0.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap_or_default();
    let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    mark.and_then(|mark| mark.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}
