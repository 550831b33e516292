//! What can be submitted: a closure, a future, a task, a chunk of tasks, or nothing but the promise of a value.
//!
//! A [`Job`] knows how to run here and, if it is a task, how to cross a process border. It knows nothing of states;
//! those are in `state.rs`.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::codec::Message;
use crate::error::CodecError;
use crate::map::Meter;
use crate::task::{self, Outcomes, Run, Shape, Task};

/// Work that has one outcome.
pub(crate) trait Job: Send + Sized + 'static {
    type Output: Send + 'static;

    /// The name to show when the options give none; for tasks also the name in the registry.
    fn name() -> &'static str;

    /// Whether [`Job::run`] returns a future.
    fn is_async() -> bool {
        false
    }

    /// Runs it on this thread, or makes the future that will.
    fn run(self) -> Run<Self::Output>;

    /// How the encoded form is to be read.
    fn shape() -> Shape {
        Shape::One
    }

    fn signature() -> &'static str {
        ""
    }

    /// `for_good`: it is not needed any more in this form, and may lose what the message can take along.
    fn encode(&mut self, _for_good: bool) -> Result<Message, CodecError> {
        Err(CodecError::NotSerialisable(Self::name().to_owned()))
    }

    fn decode(_message: Message) -> Result<Self, CodecError> {
        Err(CodecError::NotSerialisable(Self::name().to_owned()))
    }

    fn decode_output(_message: Message) -> Result<Self::Output, CodecError> {
        Err(CodecError::NotSerialisable(Self::name().to_owned()))
    }
}

/// A blocking closure.
pub(crate) struct Closure<F>(pub(crate) F);

impl<F, T> Job for Closure<F>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = T;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(self) -> Run<T> {
        Run::Ready((self.0)())
    }
}

/// A future.
pub(crate) struct Block<F>(pub(crate) F);

impl<F> Job for Block<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn is_async() -> bool {
        true
    }

    fn run(self) -> Run<F::Output> {
        Run::future(self.0)
    }
}

/// One task.
pub(crate) struct Single<T>(pub(crate) T);

impl<T: Task> Job for Single<T> {
    type Output = T::Output;

    fn name() -> &'static str {
        T::NAME
    }

    fn is_async() -> bool {
        T::IS_ASYNC
    }

    fn run(self) -> Run<T::Output> {
        self.0.run()
    }

    fn signature() -> &'static str {
        T::SIGNATURE
    }

    fn encode(&mut self, for_good: bool) -> Result<Message, CodecError> {
        if for_good { task::encode_call(&mut self.0) } else { task::encode_argument(&self.0) }
    }

    fn decode(message: Message) -> Result<Self, CodecError> {
        task::decode_call(message).map(Single)
    }

    fn decode_output(message: Message) -> Result<T::Output, CodecError> {
        task::decode_output::<T>(message)
    }
}

/// Several tasks that travel together and run one after another; each has its own outcome.
pub(crate) struct Chunk<T> {
    pub(crate) tasks: Vec<T>,
    /// Is told how long they took, if they ran on a thread.
    pub(crate) meter: Option<Arc<Meter>>,
}

impl<T: Task> Job for Chunk<T> {
    type Output = Outcomes<T::Output>;

    fn name() -> &'static str {
        T::NAME
    }

    fn is_async() -> bool {
        T::IS_ASYNC
    }

    fn run(self) -> Run<Self::Output> {
        let Chunk { tasks, meter } = self;
        if T::IS_ASYNC {
            return Run::future(task::run_each_async(tasks));
        }
        let Some(meter) = meter else { return Run::Ready(task::run_each(tasks, None)) };
        let len = tasks.len();
        let outcomes = task::run_each(tasks, Some(&|elements, took| meter.ran(elements, took)));
        meter.ended(len);
        Run::Ready(outcomes)
    }

    fn shape() -> Shape {
        Shape::Chunk
    }

    fn signature() -> &'static str {
        T::SIGNATURE
    }

    fn encode(&mut self, _for_good: bool) -> Result<Message, CodecError> {
        task::encode_chunk(&self.tasks)
    }

    fn decode(message: Message) -> Result<Self, CodecError> {
        task::decode_chunk(&message).map(|tasks| Chunk { tasks, meter: None })
    }

    fn decode_output(message: Message) -> Result<Self::Output, CodecError> {
        task::decode_outputs::<T>(&message)
    }
}

/// A value that somebody else will provide, by a [`Completer`](crate::Completer).
pub(crate) struct Promise<T>(PhantomData<fn() -> T>);

impl<T> Promise<T> {
    pub(crate) fn new() -> Self {
        Promise(PhantomData)
    }
}

impl<T: Send + 'static> Job for Promise<T> {
    type Output = T;

    fn name() -> &'static str {
        "promise"
    }

    fn run(self) -> Run<T> {
        unreachable!("a promise is completed by its completer and never given to an executor")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::block::Buffer;

    #[derive(Serialize, Deserialize)]
    struct Length(#[serde(with = "serde_bytes")] Vec<u8>);

    impl Task for Length {
        type Output = usize;
        const NAME: &'static str = "length";

        fn run(self) -> Run<usize> {
            Run::Ready(self.0.len())
        }

        fn take_block(&mut self) -> Option<(u32, Bytes)> {
            self.0.take().map(|block| (0, block))
        }

        fn put_block(&mut self, _place: u32, block: Vec<u8>) -> bool {
            self.0.put(block)
        }
    }

    #[test]
    fn a_job_encoded_to_be_sent_can_still_be_run_here() {
        let message = Single(Length(vec![7; 100_000])).encode(true).unwrap();
        assert!(message.block.is_some(), "a large buffer stays out of the encoded form");
        for _ in 0..2 {
            let job = Single::<Length>::decode(message.clone()).unwrap();
            assert!(matches!(job.run(), Run::Ready(100_000)));
        }
        assert!(Chunk::<Length>::decode(message).is_err(), "no buffer is lost in silence");
    }
}
