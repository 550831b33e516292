//! A task is a named value: its arguments as plain data, and a name under which any worker finds the function.
//!
//! `#[task]` writes the struct, the [`Task`] impl and the [`Registration`]. Registrations are gathered at link time
//! (`linkme`), so a worker process, which is the same program started again, finds every function by name; neither an
//! address nor a closure ever crosses a process border. A task in a crate that nothing else in the program refers to
//! may be left out by the linker: call something of that crate, or `use` it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, Block, Message};
use crate::error::{BuildError, CodecError, Outcome, PanicReport, TaskError};
use crate::panic;
use crate::quick;

/// A call as a value: arguments that can be sent, and the function they are for.
///
/// Written by [`#[task]`](macro@crate::task); rarely by hand. Any [`Executor`](crate::Executor) runs it.
///
/// A hand-written impl must also be registered for [`ProcessPool`](crate::ProcessPool), with
/// [`register!`](crate::register):
///
/// ```
/// use polypool::{ExecutorExt, Run, Task, ThreadPool};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Add(u32, u32);
///
/// impl Task for Add {
///     type Output = u32;
///     const NAME: &'static str = "add";
///     fn run(self) -> Run<u32> {
///         Run::Ready(self.0 + self.1)
///     }
/// }
/// polypool::register!(Add);
///
/// let pool = ThreadPool::new()?;
/// assert_eq!(pool.submit(Add(2, 3)).wait()?, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// What the call returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// The name under which workers find the function; unique in the program.
    const NAME: &'static str;

    /// The signature as text; two programs whose tasks of one name differ in it refuse each other's calls.
    const SIGNATURE: &'static str = "";

    /// Whether [`run`](Task::run) returns a future, so that a thread pool runs it on its asynchronous side.
    const IS_ASYNC: bool = false;

    /// Whether the arguments cross the border in their order and without their names. `#[task]` says so, whose structs
    /// have all of their fields, always. Where fields may be missing, others would take their places.
    #[doc(hidden)]
    const BY_POSITION: bool = false;

    /// Makes the call.
    fn run(self) -> Run<Self::Output>;

    /// Encodes the result. `#[task]` overrides it where the result is a byte buffer.
    ///
    /// # Errors
    /// Whatever the serializer says.
    fn serialize_output<S: Serializer>(output: &Self::Output, serializer: S) -> Result<S::Ok, S::Error> {
        output.serialize(serializer)
    }

    /// Decodes the result; the other half of [`serialize_output`](Task::serialize_output).
    ///
    /// # Errors
    /// Whatever the deserializer says.
    fn deserialize_output<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self::Output, D::Error> {
        Self::Output::deserialize(deserializer)
    }

    /// Takes a large buffer out of the arguments, which needs no encoding; with its place. `#[task]` writes it.
    #[doc(hidden)]
    fn take_block(&mut self) -> Option<(u32, Bytes)> {
        None
    }

    /// Puts a buffer into its place. `false`: there is no such place.
    #[doc(hidden)]
    fn put_block(&mut self, _place: u32, _block: Vec<u8>) -> bool {
        false
    }

    /// Takes a large buffer out of the result, which needs no encoding. `#[task]` writes it.
    #[doc(hidden)]
    fn take_output_block(_output: &mut Self::Output) -> Option<Bytes> {
        None
    }

    /// Puts a buffer into its place. `false`: there is no such place.
    #[doc(hidden)]
    fn put_output_block(_output: &mut Self::Output, _block: Vec<u8>) -> bool {
        false
    }
}

/// A call that was made: its result, or the future that will have it.
#[allow(missing_debug_implementations)]
pub enum Run<T> {
    /// The call returned.
    Ready(T),
    /// The call is asynchronous.
    Future(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Run<T> {
    /// Wraps the future of an asynchronous call.
    pub fn future(future: impl Future<Output = T> + Send + 'static) -> Self {
        Run::Future(Box::pin(future))
    }
}

impl<T> std::fmt::Debug for Run<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Run::Ready(_) => "Run::Ready",
            Run::Future(_) => "Run::Future",
        })
    }
}

/// An entry of the link-time registry: a name, and how to make the call from encoded arguments.
#[derive(Clone, Copy)]
pub struct Registration {
    pub(crate) name: &'static str,
    pub(crate) signature: &'static str,
    pub(crate) execute: fn(Message, Shape) -> Execution,
}

impl Registration {
    /// The entry of a task type.
    #[must_use]
    pub const fn of<T: Task>() -> Self {
        Registration { name: T::NAME, signature: T::SIGNATURE, execute: execute::<T> }
    }
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All tasks of this program.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static TASKS: [Registration];

/// Registers a hand-written [`Task`] under its name, so that worker processes find it.
#[macro_export]
macro_rules! register {
    ($task:ty) => {
        const _: () = {
            #[$crate::__private::linkme::distributed_slice($crate::__private::TASKS)]
            #[linkme(crate = $crate::__private::linkme)]
            static REGISTRATION: $crate::__private::Registration = $crate::__private::Registration::of::<$task>();
        };
    };
}

/// The tasks of this crate itself, in which nothing can be gathered at link time: that takes what it forbids.
static OWN: &[Registration] = &[Registration::of::<crate::manager::ServeHere>()];

/// The registry by name.
///
/// # Errors
/// [`BuildError::DuplicateTask`] when two tasks have one name.
pub(crate) fn registry() -> Result<&'static BTreeMap<&'static str, &'static Registration>, BuildError> {
    static REGISTRY: OnceLock<Result<BTreeMap<&'static str, &'static Registration>, String>> = OnceLock::new();
    REGISTRY
        .get_or_init(|| {
            let mut tasks = BTreeMap::new();
            for registration in TASKS.iter().chain(OWN) {
                if tasks.insert(registration.name, registration).is_some() {
                    return Err(registration.name.to_owned());
                }
            }
            Ok(tasks)
        })
        .as_ref()
        .map_err(|name| BuildError::DuplicateTask(name.clone()))
}

/// Whether a message holds one call or a chunk of calls of the same task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    Chunk,
}

/// What a worker sends back for a call.
#[derive(Debug)]
pub(crate) enum Reply {
    Value(Message),
    Panicked(PanicReport),
    Codec(CodecError),
}

/// A call made from encoded arguments.
pub(crate) enum Execution {
    Done(Reply),
    Future(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

/// Decodes the arguments, makes the call, encodes the result; none of the three can take the worker down with a panic.
///
/// The encoded arguments go before the call is made: neither their memory nor a second owner of their handles is kept while it runs.
fn execute<T: Task>(payload: Message, shape: Shape) -> Execution {
    match shape {
        Shape::One => match decode_call::<T>(payload) {
            Err(error) => Execution::Done(Reply::Codec(error)),
            Ok(task) => match panic::catch(|| task.run()) {
                Err(report) => Execution::Done(Reply::Panicked(report)),
                Ok(Run::Ready(output)) => Execution::Done(encode_output::<T>(output)),
                Ok(Run::Future(future)) => Execution::Future(Box::pin(async move {
                    match std::panic::AssertUnwindSafe(future).catch_unwind().await {
                        Ok(output) => encode_output::<T>(output),
                        Err(payload) => Reply::Panicked(panic::report(payload)),
                    }
                })),
            },
        },
        Shape::Chunk => match decode_only(payload, decode_chunk::<T>) {
            Err(error) => Execution::Done(Reply::Codec(error)),
            Ok(tasks) if !T::IS_ASYNC => Execution::Done(encode_outcomes::<T>(run_each(tasks, None))),
            Ok(tasks) => Execution::Future(Box::pin(async move { encode_outcomes::<T>(run_each_async(tasks).await) })),
        },
    }
}

/// Decodes and drops the encoded form.
fn decode_only<A>(payload: Message, decode: fn(&Message) -> A) -> A {
    decode(&payload)
}

/// Decodes the arguments of one call.
fn decode_argument<T: Task>(payload: &Message) -> Result<T, CodecError> {
    decode_arguments(payload, codec::decode)
}

/// Decodes the arguments of a chunk.
pub(crate) fn decode_chunk<T: Task>(payload: &Message) -> Result<Vec<T>, CodecError> {
    decode_arguments(payload, quick::read_list)
}

fn decode_arguments<A>(payload: &Message, decode: fn(&[u8]) -> Result<A, String>) -> Result<A, CodecError> {
    if payload.block.is_some() {
        return Err(CodecError::DecodeArgument("a buffer came with it that belongs nowhere".to_owned()));
    }
    match panic::catch(|| codec::unpack_with(payload, decode)) {
        Ok(result) => result.map_err(CodecError::DecodeArgument),
        Err(report) => Err(CodecError::DecodeArgument(format!("its decoder panicked{report}"))),
    }
}

/// Decodes the arguments of one call, and drops their encoded form.
pub(crate) fn decode_call<T: Task>(mut payload: Message) -> Result<T, CodecError> {
    let block = payload.block.take().map(|block| *block);
    let mut task = decode_only(payload, decode_argument::<T>)?;
    let (place, block) = match block {
        None => return Ok(task),
        Some(Block::Received(place, block)) => (place, block),
        // It never left.
        Some(Block::Given(place, block)) => (place, block.into()),
    };
    if task.put_block(place, block) {
        Ok(task)
    } else {
        Err(CodecError::DecodeArgument(format!("no argument {place} takes a buffer")))
    }
}

/// Encodes the arguments of one call, of which nothing is needed afterwards.
pub(crate) fn encode_call<T: Task>(task: &mut T) -> Result<Message, CodecError> {
    let block = task.take_block().map(|(place, block)| Box::new(Block::Given(place, block)));
    Ok(Message { block, ..encode_argument(task)? })
}

/// Encodes the result of one call.
fn encode_output<T: Task>(mut output: T::Output) -> Reply {
    let block = T::take_output_block(&mut output).map(|block| Box::new(Block::Given(0, block)));
    match encode_result(|| codec::pack(&OutputOf::<T>(&output))) {
        Reply::Value(message) => Reply::Value(Message { block, ..message }),
        reply => reply,
    }
}

fn encode_result(pack: impl FnOnce() -> Result<Message, String>) -> Reply {
    match panic::catch(pack) {
        Ok(Ok(message)) => Reply::Value(message),
        Ok(Err(message)) => Reply::Codec(CodecError::EncodeResult(message)),
        Err(report) => Reply::Codec(CodecError::EncodeResult(format!("its encoder panicked{report}"))),
    }
}

/// Encodes the results of a chunk. One that can't be encoded is an error in its own place.
fn encode_outcomes<T: Task>(mut outcomes: Outcomes<T::Output>) -> Reply {
    match encode_result(|| pack_outcomes::<T>(&outcomes)) {
        Reply::Codec(_) => {
            for outcome in outcomes.mixed() {
                if let Ok(output) = outcome
                    && let Reply::Codec(error) = encode_result(|| codec::pack(&OutputOf::<T>(output)))
                {
                    *outcome = Err(error.into());
                }
            }
            encode_result(|| pack_outcomes::<T>(&outcomes))
        }
        reply => reply,
    }
}

/// What the first byte of the outcomes of a chunk says: mostly they are values, which then need not say so one by one.
const VALUES: u8 = 0;
const MIXED: u8 = 1;

fn pack_outcomes<T: Task>(outcomes: &Outcomes<T::Output>) -> Result<Message, String> {
    codec::pack_with(|bytes| match outcomes {
        Outcomes::Values(values) => {
            bytes.push(VALUES);
            quick::write_list(values.iter().map(OutputOf::<T>), false, bytes)
        }
        Outcomes::Mixed(outcomes) => {
            bytes.push(MIXED);
            let elements = outcomes.iter().map(|outcome| match outcome {
                Ok(output) => Element::Value(OutputOf::<T>(output)),
                Err(TaskError::Panicked(report)) => Element::Panicked((**report).clone()),
                Err(TaskError::Codec(error)) => Element::Failed((**error).clone()),
                Err(error) => Element::Failed(CodecError::EncodeResult(error.to_string())),
            });
            quick::write_list(elements, false, bytes)
        }
    })
}

/// So many calls of a chunk run between two looks at the clock.
const STRETCH: usize = 64;

/// Runs the calls of a chunk one after another; the failure of one is the outcome of that one. `ran` is told every now and then
/// how many calls have taken how long.
pub(crate) fn run_each<T: Task>(tasks: Vec<T>, ran: Option<&dyn Fn(usize, Duration)>) -> Outcomes<T::Output> {
    let len = tasks.len();
    let mut outcomes = Outcomes::with_capacity(len);
    let mut tasks = tasks.into_iter();
    let mut begun = ran.map(|_| Instant::now());
    let mut told = 0;
    while outcomes.len() < len {
        let stretch = if ran.is_some() { STRETCH } else { len };
        // Panics are caught around as many calls as there are up to the next panic.
        let caught = panic::catch(|| {
            for task in tasks.by_ref().take(stretch) {
                match task.run() {
                    Run::Ready(output) => outcomes.push_value(output),
                    Run::Future(future) => {
                        // First, as its `Drop` may panic, and then that is the outcome.
                        drop(future);
                        outcomes.push(Err(TaskError::InvalidOption(
                            "a task returned Run::Future although its IS_ASYNC is false; set it to true",
                        )));
                    }
                }
            }
        });
        if let Err(report) = caught {
            outcomes.push(Err(TaskError::Panicked(Box::new(report))));
        }
        if let (Some(ran), Some(begun)) = (ran, &mut begun) {
            let now = Instant::now();
            ran(outcomes.len() - told, now - *begun);
            (*begun, told) = (now, outcomes.len());
        }
    }
    outcomes
}

/// The same for asynchronous calls: one after another, too, so that `chunk_size` says how much runs at once.
pub(crate) async fn run_each_async<T: Task>(tasks: Vec<T>) -> Outcomes<T::Output> {
    let mut outcomes = Outcomes::with_capacity(tasks.len());
    for task in tasks {
        outcomes.push(match panic::catch(|| task.run()) {
            Ok(Run::Ready(output)) => Ok(output),
            Ok(Run::Future(future)) => std::panic::AssertUnwindSafe(future)
                .catch_unwind()
                .await
                .map_err(|payload| TaskError::Panicked(Box::new(panic::report(payload)))),
            Err(report) => Err(TaskError::Panicked(Box::new(report))),
        });
    }
    outcomes
}

/// The outcomes of a chunk, in order. Mostly they are values, and as long as they are, nothing else is kept.
pub(crate) enum Outcomes<V> {
    Values(Vec<V>),
    Mixed(Vec<Outcome<V>>),
}

impl<V> Outcomes<V> {
    fn with_capacity(len: usize) -> Self {
        Outcomes::Values(Vec::with_capacity(len))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Outcomes::Values(values) => values.len(),
            Outcomes::Mixed(outcomes) => outcomes.len(),
        }
    }

    fn push_value(&mut self, value: V) {
        match self {
            Outcomes::Values(values) => values.push(value),
            Outcomes::Mixed(outcomes) => outcomes.push(Ok(value)),
        }
    }

    fn push(&mut self, outcome: Outcome<V>) {
        match outcome {
            Ok(value) => self.push_value(value),
            error => self.mixed().push(error),
        }
    }

    /// The outcomes one by one, as those that can be errors.
    fn mixed(&mut self) -> &mut Vec<Outcome<V>> {
        if let Outcomes::Values(values) = self {
            let mut outcomes = Vec::with_capacity(values.capacity());
            outcomes.extend(values.drain(..).map(Ok));
            *self = Outcomes::Mixed(outcomes);
        }
        match self {
            Outcomes::Mixed(outcomes) => outcomes,
            Outcomes::Values(_) => unreachable!("values were just made mixed"),
        }
    }
}

impl<V> IntoIterator for Outcomes<V> {
    type Item = Outcome<V>;
    type IntoIter = IntoOutcomes<V>;

    fn into_iter(self) -> IntoOutcomes<V> {
        match self {
            Outcomes::Values(values) => IntoOutcomes::Values(values.into_iter()),
            Outcomes::Mixed(outcomes) => IntoOutcomes::Mixed(outcomes.into_iter()),
        }
    }
}

/// [`Outcomes`], one after another.
pub(crate) enum IntoOutcomes<V> {
    Values(std::vec::IntoIter<V>),
    Mixed(std::vec::IntoIter<Outcome<V>>),
}

impl<V> IntoOutcomes<V> {
    pub(crate) fn none() -> Self {
        IntoOutcomes::Values(Vec::new().into_iter())
    }

    pub(crate) fn of(outcomes: Vec<Outcome<V>>) -> Self {
        IntoOutcomes::Mixed(outcomes.into_iter())
    }
}

impl<V> Iterator for IntoOutcomes<V> {
    type Item = Outcome<V>;

    #[inline]
    fn next(&mut self) -> Option<Outcome<V>> {
        match self {
            IntoOutcomes::Values(values) => values.next().map(Ok),
            IntoOutcomes::Mixed(outcomes) => outcomes.next(),
        }
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            IntoOutcomes::Values(values) => values.size_hint(),
            IntoOutcomes::Mixed(outcomes) => outcomes.size_hint(),
        }
    }
}

impl<V> ExactSizeIterator for IntoOutcomes<V> {}

/// Encodes the arguments of one call.
pub(crate) fn encode_argument<T: Task>(task: &T) -> Result<Message, CodecError> {
    encode_arguments(|bytes| quick::write(task, T::BY_POSITION, bytes))
}

/// Encodes the arguments of a chunk.
pub(crate) fn encode_chunk<T: Task>(tasks: &[T]) -> Result<Message, CodecError> {
    encode_arguments(|bytes| quick::write_list(tasks.iter(), T::BY_POSITION, bytes))
}

fn encode_arguments(write: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<Message, CodecError> {
    match panic::catch(|| codec::pack_with(write)) {
        Ok(result) => result.map_err(CodecError::EncodeArgument),
        Err(report) => Err(CodecError::EncodeArgument(format!("its encoder panicked{report}"))),
    }
}

/// Decodes the result of one call.
pub(crate) fn decode_output<T: Task>(mut message: Message) -> Result<T::Output, CodecError> {
    let block = message.block.take().map(|block| *block);
    let mut output = decode_reply(&message, codec::decode::<OwnedOutput<T>>)?.0;
    if let Some(Block::Received(_, block)) = block
        && !T::put_output_block(&mut output, block)
    {
        return Err(CodecError::DecodeResult("it takes no buffer".to_owned()));
    }
    Ok(output)
}

/// Decodes the results of a chunk.
pub(crate) fn decode_outputs<T: Task>(message: &Message) -> Result<Outcomes<T::Output>, CodecError> {
    if message.block.is_some() {
        return Err(CodecError::DecodeResult("a buffer came with it that belongs nowhere".to_owned()));
    }
    decode_reply(message, |bytes| match bytes.split_first() {
        Some((&VALUES, values)) => {
            let values: Vec<OwnedOutput<T>> = quick::read_list(values)?;
            Ok(Outcomes::Values(values.into_iter().map(|value| value.0).collect()))
        }
        Some((&MIXED, elements)) => {
            let elements: Vec<Element<OwnedOutput<T>>> = codec::decode(elements)?;
            let outcome = |element| match element {
                Element::Value(OwnedOutput(output)) => Ok(output),
                Element::Panicked(report) => Err(TaskError::Panicked(Box::new(report))),
                Element::Failed(error) => Err(TaskError::from(error)),
            };
            Ok(Outcomes::Mixed(elements.into_iter().map(outcome).collect()))
        }
        _ => Err("these are no results of a chunk".to_owned()),
    })
}

fn decode_reply<R>(message: &Message, decode: impl FnOnce(&[u8]) -> Result<R, String>) -> Result<R, CodecError> {
    match panic::catch(|| codec::unpack_with(message, decode)) {
        Ok(result) => result.map_err(CodecError::DecodeResult),
        Err(report) => Err(CodecError::DecodeResult(format!("its decoder panicked{report}"))),
    }
}

/// The outcome of one call of a chunk, as it crosses the border.
#[derive(Serialize, Deserialize)]
enum Element<O> {
    Value(O),
    Panicked(PanicReport),
    Failed(CodecError),
}

/// A result that is encoded the way its task says.
struct OutputOf<'a, T: Task>(&'a T::Output);

impl<T: Task> Serialize for OutputOf<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize_output(self.0, serializer)
    }
}

/// A result that is decoded the way its task says.
struct OwnedOutput<T: Task>(T::Output);

impl<'de, T: Task> Deserialize<'de> for OwnedOutput<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize_output(deserializer).map(OwnedOutput)
    }
}
