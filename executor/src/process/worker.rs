//! The worker's side: a process that reads calls from its channel (two rings in shared memory, or a socket:
//! `transport.rs`), makes them one at a time, and writes replies.
//!
//! Two threads. The **main** one reads frames, claims each call (a call that was taken back or cancelled meanwhile is
//! skipped), makes it, and writes the reply at once, before it claims the next one: a worker that dies has then one
//! task on its conscience, the one it was running. The **watcher** reads the control socket: it marks the running call
//! as cancelled when told so, and when the socket ends, which means that the parent has gone, it ends the process at
//! once, be the main thread as busy as it may.

use std::borrow::Cow;
use std::future::Future as _;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_ext::CancellationToken;
use parking_lot::{Condvar, Mutex};
use polypool_ipc::{Claims, Luggage, LuggageError};
use tokio::runtime::Runtime;

use super::transport::{self, RingReader, RingSocket, RingWriter};
use super::wire::{self, Header, Hello, Kind, Ready};
use crate::buffers;
use crate::codec::{self, Message};
use crate::context::{self, ContextSource, Progress};
use crate::error::{CodecError, PanicReport};
use crate::panic;
use crate::state::TaskId;
use crate::task::{Execution, Registration, Reply, Shape};

/// Reports of progress that follow each other more closely than this are left out, but for the last one.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

/// After how long luggage that did not get through is tried again.
const LUGGAGE_PAUSE: Duration = Duration::from_millis(2);

/// Runs tasks until the pool ends, and then ends the process.
pub(super) fn serve(channel: UnixStream) -> ! {
    panic::install_hook();
    match Worker::start(channel).and_then(Worker::work) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            // The parent has gone, or is not a parent of this protocol; either way there is nobody to tell.
            eprintln!("polypool: a worker process ends: {error}");
            std::process::exit(2);
        }
    }
}

struct Worker {
    channel: Arc<Channel>,
    /// Carries frames, or bells.
    socket: UnixStream,
    ring: Option<RingReader>,
    /// For the handles in calls and answers.
    luggage: UnixStream,
    claims: Claims,
    limit: u64,
    tasks: Vec<&'static Registration>,
    current: Arc<Mutex<Option<Arc<Current>>>>,
    /// What stood for the last call: it serves the next one, unless somebody has kept it.
    spare: Option<Arc<Current>>,
    /// The name of the next call, if it has one of its own.
    name: Option<String>,
    reports: Arc<Reports>,
    /// For asynchronous tasks; made with the first one.
    runtime: Option<Runtime>,
    read: BytesMut,
    /// A call whose block is being read.
    pending: Option<wire::Pending>,
}

/// The writing half, also used by threads that report progress.
struct Channel {
    socket: UnixStream,
    /// Held while a frame is written.
    ring: Mutex<Option<RingWriter>>,
}

impl Channel {
    fn write(&self, header: Header, payload: &[u8]) -> io::Result<()> {
        self.write_with(header, payload, &[])
    }

    /// With a block, which may be empty.
    fn write_with(&self, header: Header, payload: &[u8], block: &[u8]) -> io::Result<()> {
        let mut ring = self.ring.lock();
        let head = wire::Head::new(Header { block: block.len() as u32, ..header }, payload.len());
        if let Some(ring) = &mut *ring {
            return ring.write(&self.socket, &[head.bytes(), payload, block], None);
        }
        let mut socket = &self.socket;
        if payload.len() <= 16 * 1024 {
            socket.write_all(&[head.bytes(), payload].concat())?;
        } else {
            socket.write_all(head.bytes())?;
            socket.write_all(payload)?;
        }
        socket.write_all(block)
    }
}

/// The greeting, and the descriptors that come with it. Reads nothing of what follows.
fn greeting(channel: &UnixStream) -> io::Result<(Hello, Vec<OwnedFd>)> {
    let mut read = BytesMut::new();
    let mut descriptors = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let room = wire::missing(&read).min(buffer.len());
        let (count, received) = polypool_ipc::recv_with_fds(channel, &mut buffer[..room], 3)?;
        if count == 0 {
            return Err(invalid("the parent went away before the handshake"));
        }
        descriptors.extend(received);
        read.extend_from_slice(&buffer[..count]);
        if let Some((header, payload)) = wire::take(&mut read, 0).map_err(invalid)? {
            if header.kind != Kind::Hello {
                return Err(invalid("the first frame is not a greeting"));
            }
            return Ok((codec::decode(&payload).map_err(invalid)?, descriptors));
        }
    }
}

/// The rings that follow the greeting; `None` if there are none, or this process can't have them.
fn rings(channel: &UnixStream) -> io::Result<Option<RingSocket>> {
    let mut byte = [0];
    match polypool_ipc::recv_with_fds(channel, &mut byte, 2) {
        Ok((0, _)) => Err(invalid("the parent went away before the handshake")),
        Ok((_, descriptors)) => match byte {
            [transport::RINGS] => Ok(RingSocket::join(descriptors).ok()),
            [transport::NO_RINGS] => Ok(None),
            [byte] => Err(invalid(format!("the greeting is followed by {byte}"))),
        },
        // They came, but this process may have no more descriptors.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

impl Worker {
    /// The handshake.
    fn start(channel: UnixStream) -> io::Result<Self> {
        let (hello, descriptors) = greeting(&channel)?;
        if hello.protocol != wire::PROTOCOL {
            return Err(invalid("the parent speaks another version of the protocol"));
        }
        let [claims, control, luggage] = <[_; 3]>::try_from(descriptors)
            .map_err(|wrong| invalid(format!("the greeting carries {} descriptors, not 3", wrong.len())))?;
        let slots = usize::try_from(hello.slots).map_err(invalid)?;
        let claims = Claims::open(claims, slots)?;
        let (reader, mut writer) = rings(&channel)?.map(RingSocket::split).unzip();
        if let Some(writer) = &mut writer {
            // Whoever waits for the answer may be about to read it.
            RingWriter::hesitate(writer);
        }
        polypool_ipc::set_process_name(&hello.name);
        super::entry::set_own_name(&hello.name);

        let tasks: Vec<&'static Registration> = match crate::task::registry() {
            Ok(registry) => registry.values().copied().collect(),
            Err(error) => return Err(invalid(error)),
        };
        let ready = Ready {
            protocol: wire::PROTOCOL,
            pid: std::process::id(),
            ring: reader.is_some(),
            tasks: tasks.iter().map(|task| (task.name.to_owned(), task.signature.to_owned())).collect(),
        };
        // The greeting still goes through the socket.
        let socket = Arc::new(Channel { socket: channel.try_clone()?, ring: Mutex::new(None) });
        let current = Arc::new(Mutex::new(None));
        let watched = current.clone();
        std::thread::Builder::new()
            .name("polypool-watch".to_owned())
            .spawn(move || watch(UnixStream::from(control), &watched))?;
        socket.write(Header::new(Kind::Ready), &codec::encode(&ready).map_err(invalid)?)?;
        *socket.ring.lock() = writer;
        Ok(Worker {
            channel: socket,
            socket: channel,
            ring: reader,
            luggage: luggage.into(),
            claims,
            limit: hello.max_message_size,
            tasks,
            current,
            spare: None,
            name: None,
            reports: Arc::default(),
            runtime: None,
            read: BytesMut::new(),
            pending: None,
        })
    }

    fn work(mut self) -> io::Result<()> {
        let _buffers = buffers::Use::begin();
        while let Some((header, payload)) = self.next_frame()? {
            match header.kind {
                Kind::Name => self.name = Some(String::from_utf8_lossy(&payload.bytes).into_owned()),
                Kind::Call => self.call(header, payload)?,
                Kind::Exit => return Ok(()),
                other => return Err(invalid(format!("a frame {other:?} is not for a worker"))),
            }
        }
        Ok(())
    }

    fn next_frame(&mut self) -> io::Result<Option<(Header, Message)>> {
        loop {
            if let Some(frame) = wire::take_whole(&mut self.read, &mut self.pending, self.limit).map_err(invalid)? {
                return Ok(Some(frame));
            }
            if let Some((block, left)) = self.pending.as_mut().map(wire::Pending::block) {
                let count = match &mut self.ring {
                    Some(ring) => ring.read_into(&self.socket, block, left, None)?,
                    None => (&self.socket).take(left as u64).read_to_end(block)?,
                };
                if count == 0 {
                    return Ok(None);
                }
                continue;
            }
            if let Some(ring) = &mut self.ring {
                let more = transport::foresight(self.read.len(), ring.buffered()?, wire::missing(&self.read));
                self.read.reserve(more);
                match ring.read_buf(&self.socket, &mut self.read, None)? {
                    0 => return Ok(None),
                    _ => continue,
                }
            }
            let have = self.read.len();
            // Grows with what arrives: a large message is read in large pieces.
            self.read.resize(have + have.clamp(64 * 1024, 4 * 1024 * 1024), 0);
            let count = loop {
                match self.socket.read(&mut self.read[have..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            self.read.truncate(have + count);
            if count == 0 {
                return Ok(None);
            }
        }
    }

    fn call(&mut self, header: Header, payload: Message) -> io::Result<()> {
        let slot = header.slot as usize;
        let name = self.name.take();
        if header.sequence != wire::INITIALIZER && !self.claims.start(slot, header.sequence) {
            return Luggage::discard(&self.luggage, header.luggage as usize);
        }
        let answer = Header { flags: 0, luggage: 0, block: 0, place: 0, ..header };
        if header.flags & wire::ANNOUNCE != 0 {
            self.channel.write(Header { kind: Kind::Started, ..answer }, b"")?;
        }
        let luggage = match header.luggage {
            0 => Ok(Luggage::default()),
            count => Luggage::receive(&self.luggage, count as usize),
        };
        let reply = match (self.tasks.get(header.task as usize).copied(), luggage) {
            (_, Err(LuggageError::Broken(error))) => return Err(error),
            (_, Err(lost)) => {
                Reply::Codec(CodecError::HandlesLost { what: "argument".to_owned(), why: lost.to_string() })
            }
            (None, _) => {
                Reply::Codec(CodecError::UnknownTask(format!("the worker has no task number {}", header.task)))
            }
            (Some(task), Ok(luggage)) => {
                let payload = Message { luggage, ..payload };
                let current = self.current(name.map_or(Cow::Borrowed(task.name), Cow::Owned), answer);
                *self.current.lock() = Some(current.clone());
                let shape = if header.flags & wire::CHUNK != 0 { Shape::Chunk } else { Shape::One };
                let reply = self.execute(task, payload, shape, &current);
                self.current.lock().take();
                current.stop();
                self.spare = Some(current);
                reply
            }
        };
        if header.sequence != wire::INITIALIZER {
            // Before the reply: from here on, nobody has a reason to kill this worker for the sake of this call.
            self.claims.finish(slot, header.sequence);
        }
        self.answer(answer, reply)?;
        if self.read.is_empty() && self.read.capacity() > 1024 * 1024 {
            self.read = BytesMut::new();
        }
        Ok(())
    }

    /// What stands for a call while it is made.
    fn current(&mut self, name: Cow<'static, str>, header: Header) -> Arc<Current> {
        if let Some(mut spare) = self.spare.take()
            && let Some(current) = Arc::get_mut(&mut spare)
        {
            current.name = name;
            current.header = header;
            current.cancelled = AtomicBool::new(false);
            current.stop = OnceLock::new();
            return spare;
        }
        Arc::new(Current {
            name,
            header,
            cancelled: AtomicBool::new(false),
            stop: OnceLock::new(),
            reports: self.reports.clone(),
            channel: self.channel.clone(),
        })
    }

    fn execute(&mut self, task: &Registration, payload: Message, shape: Shape, current: &Arc<Current>) -> Reply {
        let execution = {
            let _entered = context::enter(current.clone(), u32::from(current.header.attempt));
            (task.execute)(payload, shape)
        };
        let mut future = match execution {
            Execution::Done(reply) => return reply,
            Execution::Future(future) => Some(future),
        };
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let message = format!("the worker has no runtime for asynchronous tasks: {error}");
                    return Reply::Panicked(PanicReport { message: Some(message), location: None });
                }
            },
        };
        let reply = runtime.block_on(async {
            let mut stop = std::pin::pin!(current.stop_token(0).cancelled_owned());
            std::future::poll_fn(|cx| {
                let _entered = context::enter(current.clone(), u32::from(current.header.attempt));
                match &mut future {
                    Some(running) if stop.as_mut().poll(cx).is_pending() => running.as_mut().poll(cx),
                    _ => {
                        // Stopped at an await. Nobody reads this reply; it says that the worker is free again.
                        let _ = panic::catch(|| drop(future.take()));
                        Poll::Ready(Reply::Panicked(PanicReport::default()))
                    }
                }
            })
            .await
        });
        let _ = panic::catch(|| drop(future.take()));
        self.runtime = Some(runtime);
        reply
    }

    fn answer(&self, header: Header, reply: Reply) -> io::Result<()> {
        let reply = match reply {
            Reply::Value(message) if message.size() > self.limit => Reply::Codec(CodecError::TooLarge {
                what: "result".to_owned(),
                size: message.size(),
                limit: self.limit,
            }),
            reply => reply,
        };
        match reply {
            Reply::Value(Message { bytes, luggage, block }) => {
                let count = luggage.len() as u32;
                if count > 0 {
                    self.send_luggage(luggage)?;
                }
                let block = block.as_deref().map_or(&[][..], |block| &block[..]);
                self.channel.write_with(Header { kind: Kind::Value, luggage: count, ..header }, &bytes, block)
            }
            Reply::Panicked(mut report) => {
                if let Some(message) = &mut report.message {
                    cut(message);
                }
                let report = codec::encode(&report).map_err(invalid)?;
                self.channel.write(Header { kind: Kind::Panicked, ..header }, &report)
            }
            Reply::Codec(mut error) => {
                if let CodecError::DecodeArgument(message) | CodecError::EncodeResult(message) = &mut error {
                    cut(message);
                }
                let error = codec::encode(&error).map_err(invalid)?;
                self.channel.write(Header { kind: Kind::Codec, ..header }, &error)
            }
        }
    }
}

impl Worker {
    /// Sends the handles in an answer, before the answer. Blocks as the channel does, until the parent has taken
    /// earlier ones.
    fn send_luggage(&self, luggage: Luggage) -> io::Result<()> {
        let mut sending = luggage.sending();
        while !sending.proceed(&self.luggage)? {
            // Too many descriptors are on their way in the whole system; nobody tells when that is over.
            std::thread::sleep(LUGGAGE_PAUSE);
        }
        Ok(())
    }
}

/// Keeps a message within what a frame may be longer than the limit.
fn cut(message: &mut String) {
    const MOST: usize = (wire::SLACK / 2) as usize;
    if message.len() > MOST {
        let end = (0..=MOST).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
}

/// The watcher: cancels the current call when told so, and ends the process when the parent has gone.
fn watch(mut control: UnixStream, current: &Mutex<Option<Arc<Current>>>) {
    let mut message = [0; wire::CANCEL];
    while control.read_exact(&mut message).is_ok() {
        let sequence = u64::from_le_bytes(message);
        let running = current.lock().clone();
        if let Some(running) = running.filter(|running| running.header.sequence == sequence) {
            running.stop();
        }
    }
    polypool_ipc::die_now();
}

/// The call that is being made.
struct Current {
    name: Cow<'static, str>,
    header: Header,
    cancelled: AtomicBool,
    /// Made when somebody awaits the cancellation.
    stop: OnceLock<CancellationToken>,
    reports: Arc<Reports>,
    channel: Arc<Channel>,
}

impl Current {
    /// Nobody waits for the call any more, because it was cancelled or has ended: whoever awaits that goes on.
    fn stop(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        if let Some(stop) = self.stop.get() {
            // Wakers are user code; one that panics must not take the watcher with it.
            let _ = panic::catch(|| stop.cancel());
        }
    }
}

impl ContextSource for Current {
    fn id(&self) -> TaskId {
        TaskId(self.header.id)
    }

    fn name(&self) -> Cow<'static, str> {
        self.name.clone()
    }

    fn has_stopped(&self, _attempt: u32) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn stop_token(&self, _attempt: u32) -> CancellationToken {
        let token = self.stop.get_or_init(CancellationToken::new).clone();
        // Either `stop` finds the token that was made, or this finds the mark that it has set before.
        if self.has_stopped(0) {
            token.cancel();
        }
        token
    }

    fn report_progress(&self, _attempt: u32, progress: Progress) {
        if !self.has_stopped(0) {
            self.reports.report(&self.channel, self.header, progress);
        }
    }
}

/// Reports of progress on their way to the parent. Of reports that follow each other closely, the newest is sent when
/// [`PROGRESS_INTERVAL`] has passed, by a thread that the first such report starts.
#[derive(Default)]
struct Reports {
    state: Mutex<ReportsState>,
    changed: Condvar,
}

#[derive(Default)]
struct ReportsState {
    last: Option<Instant>,
    held_back: Option<(Header, Progress)>,
    has_thread: bool,
}

impl Reports {
    fn report(self: &Arc<Self>, channel: &Arc<Channel>, header: Header, progress: Progress) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let is_early = state.last.is_some_and(|last| now.duration_since(last) < PROGRESS_INTERVAL);
        if !is_early || progress.done == progress.total {
            state.last = Some(now);
            state.held_back = None;
            send_progress(channel, header, progress);
            return;
        }
        state.held_back = Some((header, progress));
        if state.has_thread {
            self.changed.notify_one();
            return;
        }
        let (reports, channel) = (self.clone(), channel.clone());
        // Without the thread, the newest report goes with the next one.
        state.has_thread = std::thread::Builder::new()
            .name("polypool-report".to_owned())
            .spawn(move || reports.send_held_back(&channel))
            .is_ok();
    }

    fn send_held_back(&self, channel: &Channel) {
        let mut state = self.state.lock();
        loop {
            match (state.held_back, state.last) {
                (None, _) => self.changed.wait(&mut state),
                (Some(_), Some(last)) if last.elapsed() < PROGRESS_INTERVAL => {
                    self.changed.wait_until(&mut state, last + PROGRESS_INTERVAL);
                }
                (Some((header, progress)), _) => {
                    state.last = Some(Instant::now());
                    state.held_back = None;
                    send_progress(channel, header, progress);
                }
            }
        }
    }
}

fn send_progress(channel: &Channel, header: Header, progress: Progress) {
    if let Ok(payload) = codec::encode(&progress) {
        // If the parent has gone, the watcher ends the process.
        let _ = channel.write(Header { kind: Kind::Progress, ..header }, &payload);
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
