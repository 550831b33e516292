//! Holding tasks at a known point, and seeing what they did, across threads and processes alike.
//!
//! A test opens a [`Board`], a small server on a Unix socket with one thread. It hands out [`Gate`]s and [`Traces`]:
//! plain data that travels to a worker as an argument of a task. A task that comes to a closed gate is counted and
//! blocks until the gate is opened; the test can wait until so and so many have arrived. A trace is a note that stays
//! when the task, or its process, is gone.
//!
//! ```
//! use integration_tests::Board;
//!
//! let board = Board::new();
//! let (gate, traces) = (board.gate("start"), board.traces());
//! let task = std::thread::spawn({
//!     let (gate, traces) = (gate.clone(), traces.clone());
//!     move || {
//!         gate.pass();
//!         traces.leave("ran");
//!     }
//! });
//! gate.wait_for_arrivals(1); // the task is there now, and does not go on
//! assert_eq!(traces.count(), 0);
//! gate.open();
//! task.join().unwrap();
//! assert_eq!(traces.all(), ["ran"]);
//! ```
//!
//! Every request is a connection of its own: one line of JSON out, one line back when what it waits for has come true.
//! The kernel closes the connection of a process that dies, so a killed worker leaves nothing behind. When the board
//! goes, all gates are open: a failing test does not leave its tasks hanging.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The server behind gates and traces; it belongs to the test.
#[derive(Debug)]
pub struct Board {
    folder: tempfile::TempDir,
}

impl Board {
    /// Starts the server.
    ///
    /// # Panics
    /// If the system has no socket or thread for it.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("board").tempdir().expect("a folder for the socket");
        let listener = UnixListener::bind(socket(folder.path())).expect("a socket for the board");
        std::thread::Builder::new()
            .name("board".to_owned())
            .spawn(move || serve(&listener))
            .expect("a thread for the board");
        Board { folder }
    }

    /// The gate of this name; it is closed until it is opened.
    #[must_use]
    pub fn gate(&self, name: &str) -> Gate {
        Gate { board: socket(self.folder.path()), name: name.to_owned() }
    }

    /// The list of traces.
    #[must_use]
    pub fn traces(&self) -> Traces {
        Traces { board: socket(self.folder.path()) }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = try_ask(&socket(self.folder.path()), &Request::End);
    }
}

/// A point at which tasks wait until the test opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    board: PathBuf,
    name: String,
}

impl Gate {
    /// Arrives, and waits until the gate is open. For tasks.
    pub fn pass(&self) {
        // A board that is gone opens all gates.
        let _ = try_ask(&self.board, &Request::Pass(self.name.clone()));
    }

    /// The same for asynchronous tasks.
    pub async fn pass_async(&self) {
        let _ = try_ask_async(&self.board, &Request::Pass(self.name.clone())).await;
    }

    /// Arrives, and does not wait. For tasks that only say that they have started.
    pub fn arrive(&self) {
        ask(&self.board, &Request::Arrive(self.name.clone()));
    }

    /// Opens the gate for all who wait and all who come. Whoever was waiting is on its way when this returns.
    pub fn open(&self) {
        ask(&self.board, &Request::Open(self.name.clone()));
    }

    /// How many have arrived so far.
    #[must_use]
    pub fn arrivals(&self) -> usize {
        number(&ask(&self.board, &Request::Arrivals(self.name.clone(), 0)))
    }

    /// Waits until at least `count` have arrived.
    pub fn wait_for_arrivals(&self, count: usize) {
        ask(&self.board, &Request::Arrivals(self.name.clone(), count));
    }
}

/// Notes that tasks leave for the test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    board: PathBuf,
}

impl Traces {
    /// Leaves a note; it is there when this returns.
    pub fn leave(&self, text: impl Into<String>) {
        ask(&self.board, &Request::Leave(text.into()));
    }

    /// All notes, in the order in which they came.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.wait_for(0)
    }

    /// How many notes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Waits until there are at least `count` notes, and returns them all.
    ///
    /// # Panics
    /// If the board answers something else.
    #[must_use]
    pub fn wait_for(&self, count: usize) -> Vec<String> {
        serde_json::from_str(&ask(&self.board, &Request::Traces(count))).expect("a list of traces")
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Pass(String),
    Arrive(String),
    Open(String),
    Arrivals(String, usize),
    Leave(String),
    Traces(usize),
    End,
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

#[track_caller]
fn ask(board: &Path, request: &Request) -> String {
    match try_ask(board, request) {
        Ok(answer) => answer,
        Err(error) => panic!("the board does not answer {request:?}: {error}"),
    }
}

fn try_ask(board: &Path, request: &Request) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(board)?;
    stream.write_all(&line(request))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    finished(answer)
}

async fn try_ask_async(board: &Path, request: &Request) -> std::io::Result<String> {
    let mut stream = tokio::net::UnixStream::connect(board).await?;
    stream.write_all(&line(request)).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    finished(answer)
}

fn finished(answer: String) -> std::io::Result<String> {
    match answer.strip_suffix('\n') {
        Some(answer) => Ok(answer.to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn line(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).expect("requests are plain data");
    line.push(b'\n');
    line
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

/// Serves one request after another. None takes long: who has to wait is put aside.
fn serve(listener: &UnixListener) {
    let mut state = State::default();
    let mut waiting: Vec<(Request, UnixStream)> = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        let mut text = String::new();
        // A client that dies between connecting and writing sends nothing.
        if BufReader::new(&stream).read_line(&mut text).is_err() {
            continue;
        }
        let Ok(request) = serde_json::from_str::<Request>(&text) else {
            continue;
        };
        if matches!(request, Request::End) {
            return;
        }
        let answer = state.take(&request);
        // Whoever waits is let go before whoever opened the gate hears that it is open.
        waiting.retain_mut(|(request, stream)| match state.answer(request) {
            Some(answer) => {
                send(stream, &answer);
                false
            }
            None => true,
        });
        match answer.or_else(|| state.answer(&request)) {
            Some(answer) => send(&stream, &answer),
            None => waiting.push((request, stream)),
        }
    }
}

fn send(mut stream: &UnixStream, answer: &str) {
    // The other side may be dead by now.
    let _ = stream.write_all(format!("{answer}\n").as_bytes());
}

#[derive(Default)]
struct State {
    gates: BTreeMap<String, GateState>,
    traces: Vec<String>,
}

#[derive(Default)]
struct GateState {
    open: bool,
    arrivals: usize,
}

impl State {
    /// What a request changes; an answer, if it needs nothing more.
    fn take(&mut self, request: &Request) -> Option<String> {
        match request {
            Request::Pass(gate) => {
                self.gate(gate).arrivals += 1;
                None
            }
            Request::Arrive(gate) => {
                self.gate(gate).arrivals += 1;
                Some(String::new())
            }
            Request::Open(gate) => {
                self.gate(gate).open = true;
                Some(String::new())
            }
            Request::Leave(text) => {
                self.traces.push(text.clone());
                Some(String::new())
            }
            Request::Arrivals(..) | Request::Traces(_) | Request::End => None,
        }
    }

    /// The answer to a request that waits for something, if that has come true.
    fn answer(&mut self, request: &Request) -> Option<String> {
        match request {
            Request::Pass(gate) => self.gate(gate).open.then(String::new),
            Request::Arrivals(gate, count) => {
                let arrivals = self.gate(gate).arrivals;
                (arrivals >= *count).then(|| arrivals.to_string())
            }
            Request::Traces(count) => (self.traces.len() >= *count)
                .then(|| serde_json::to_string(&self.traces).expect("texts are plain data")),
            Request::Arrive(_) | Request::Open(_) | Request::Leave(_) | Request::End => None,
        }
    }

    fn gate(&mut self, name: &str) -> &mut GateState {
        self.gates.entry(name.to_owned()).or_default()
    }
}
