//! `block_on`: parking, nesting, the observer.

mod common;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_ext::{
    All, BlockingObserver, FutureExt, as_completed, block_on, block_on_deadline, set_blocking_observer, wait,
};
use tokio::sync::oneshot;

use common::{Restless, watchdog};

/// Long beside the time that a busy machine may keep a thread from falling asleep.
const SHORT: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Counter {
    announced: Cell<usize>,
    resumed: Cell<usize>,
    refuse: Cell<bool>,
    on_block: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl Counter {
    fn install() -> Rc<Self> {
        let counter = Rc::new(Self::default());
        set_blocking_observer(Some(counter.clone()));
        counter
    }

    fn counts(&self) -> (usize, usize) {
        (self.announced.get(), self.resumed.get())
    }
}

impl BlockingObserver for Counter {
    fn about_to_block(&self) {
        self.announced.set(self.announced.get() + 1);
        assert!(!self.refuse.get(), "refused");
        if let Some(action) = self.on_block.take() {
            action();
        }
    }

    fn resumed(&self) {
        self.resumed.set(self.resumed.get() + 1);
    }
}

/// Wakes itself `turns` times before it is ready.
fn turns(mut turns: usize) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        if turns == 0 {
            return Poll::Ready(());
        }
        turns -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// The waker that a blocking wait of this thread polls with.
fn waker() -> Waker {
    block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())))
}

/// Many real sleeps: each value is sent by another thread that waits for ours to ask.
#[test]
fn parks_and_wakes_without_losing_a_wake_up() {
    watchdog(|| {
        let (ask, asked) = mpsc::channel::<oneshot::Sender<usize>>();
        let other = thread::spawn(move || {
            for (i, reply) in asked.into_iter().enumerate() {
                reply.send(i).unwrap();
            }
        });
        for i in 0..10_000 {
            let (sender, receiver) = oneshot::channel();
            ask.send(sender).unwrap();
            assert_eq!(block_on(receiver), Ok(i));
        }
        drop(ask);
        other.join().unwrap();
    });
}

#[test]
fn future_that_wakes_itself_needs_no_other_thread() {
    watchdog(|| block_on(turns(1_000)));
}

#[test]
fn wait_inside_a_wait() {
    watchdog(|| {
        let (sender, receiver) = oneshot::channel();
        let (outer_sender, mut outer_receiver) = oneshot::channel();
        let other = thread::spawn(move || {
            outer_sender.send(1).unwrap(); // may come while the inner wait sleeps
            sender.send(2).unwrap();
        });
        let mut inner = Some(receiver);
        let sum = block_on(poll_fn(move |cx| {
            let outer = Pin::new(&mut outer_receiver).poll(cx);
            let inner = inner.take().map(|inner| inner.wait().unwrap());
            assert!(inner.is_none_or(|value| value == 2));
            outer
        }));
        assert_eq!(sum, Ok(1));
        other.join().unwrap();
    });
}

/// The same waker each time: nothing is made anew for a second wait, and an inner wait doesn't share it.
#[test]
fn parker_is_reused_but_never_shared() {
    let first = waker();
    assert!(first.will_wake(&waker()));
    block_on(poll_fn(|cx| {
        assert!(cx.waker().will_wake(&first));
        assert!(!waker().will_wake(&first), "it is taken");
        Poll::Ready(())
    }));
    assert!(catch_unwind(|| block_on(async { panic!("inside") })).is_err());
    let after = waker();
    drop(first);
    assert!(after.will_wake(&waker()));
    assert!(!thread::spawn(waker).join().unwrap().will_wake(&after));
}

#[test]
fn deadline_ends_the_wait_and_leaves_the_future() {
    watchdog(|| {
        let (sender, receiver) = oneshot::channel();
        let mut receiver = pin!(receiver);
        let start = Instant::now();
        let error = block_on_deadline(receiver.as_mut(), start + SHORT).unwrap_err();
        assert!(start.elapsed() >= SHORT);
        assert!(error.duration() <= SHORT);
        sender.send(1).unwrap();
        assert_eq!(block_on_deadline(receiver, start).unwrap(), Ok(1), "polled once, however late");
        assert!(block_on_deadline(pin!(Restless), Instant::now() + SHORT).is_err());
    });
}

#[test]
fn observer_hears_nothing_when_nothing_blocks() {
    watchdog(|| {
        let counter = Counter::install();
        block_on(ready(()));
        block_on(turns(10));
        let _ = pending::<()>().wait_timeout(Duration::ZERO);
        as_completed([ready(1)]).blocking().for_each(drop);
        assert_eq!(wait([ready(1)], All, Duration::ZERO).blocking().done, [1]);
        assert_eq!(counter.counts(), (0, 0));
    });
}

#[test]
fn observer_hears_of_each_blocking_call_once() {
    watchdog(|| {
        let counter = Counter::install();
        let _ = pending::<()>().wait_timeout(SHORT);
        assert_eq!(counter.counts(), (1, 1));
        let _ = as_completed([pending::<()>()]).timeout(SHORT).blocking().next();
        assert_eq!(counter.counts(), (2, 2));
        let _ = wait([pending::<()>()], All, SHORT).blocking();
        assert_eq!(counter.counts(), (3, 3));

        // Three sleeps in one call: the other thread waits for each poll before it wakes us again.
        let (ask, asked) = mpsc::channel::<Waker>();
        let other = thread::spawn(move || asked.into_iter().for_each(Waker::wake));
        let mut polls = 0;
        block_on(poll_fn(|cx| {
            polls += 1;
            if polls > 3 {
                return Poll::Ready(());
            }
            ask.send(cx.waker().clone()).unwrap();
            Poll::Pending
        }));
        drop(ask);
        other.join().unwrap();
        assert!(counter.announced.get() <= 4, "at most once; not at all if the wakes came first");
        assert_eq!(counter.announced, counter.resumed);
    });
}

/// What the observer does may bring the wake-up about: a pool that runs other work on this thread.
#[test]
fn wake_up_from_inside_the_observer_is_seen() {
    watchdog(|| {
        let counter = Counter::install();
        let (sender, receiver) = oneshot::channel();
        let action = move || sender.send(5).unwrap();
        counter.on_block.replace(Some(Box::new(action)));
        assert_eq!(block_on(receiver), Ok(5));
        assert_eq!(counter.counts(), (1, 1));
    });
}

/// An observer may wait itself, and set another observer.
#[test]
fn observer_may_block_and_set_another() {
    watchdog(|| {
        let counter = Counter::install();
        let (sender, receiver) = oneshot::channel();
        let action = move || {
            let previous = set_blocking_observer(None);
            let _ = pending::<()>().wait_timeout(SHORT);
            set_blocking_observer(previous);
            sender.send(5).unwrap();
        };
        counter.on_block.replace(Some(Box::new(action)));
        assert_eq!(block_on(receiver), Ok(5));
        assert_eq!(counter.counts(), (1, 1));
    });
}

#[test]
fn refusal_unwinds_without_resumed_and_drops_the_future() {
    watchdog(|| {
        let counter = Counter::install();
        counter.refuse.set(true);
        let (sender, receiver) = oneshot::channel::<()>();
        let panic = catch_unwind(AssertUnwindSafe(|| block_on(receiver))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"refused"));
        assert_eq!(counter.counts(), (1, 0));
        assert!(sender.is_closed());
        counter.refuse.set(false);
        let (sender, receiver) = oneshot::channel::<()>();
        counter.on_block.replace(Some(Box::new(move || sender.send(()).unwrap())));
        block_on(receiver).unwrap();
        assert_eq!(counter.counts(), (2, 1), "the thread can wait again");
    });
}

#[test]
fn resumed_is_called_when_the_future_panics_after_a_sleep() {
    watchdog(|| {
        let counter = Counter::install();
        let (sender, receiver) = oneshot::channel::<()>();
        counter.on_block.replace(Some(Box::new(move || sender.send(()).unwrap())));
        let panics = async {
            receiver.await.unwrap();
            panic!("after the sleep");
        };
        assert!(catch_unwind(AssertUnwindSafe(|| block_on(panics))).is_err());
        assert_eq!(counter.counts(), (1, 1));
    });
}

#[test]
fn observer_belongs_to_its_thread_and_is_given_back() {
    let counter = Counter::install();
    watchdog(|| {
        assert!(set_blocking_observer(None).is_none());
        let _ = pending::<()>().wait_timeout(SHORT);
    });
    let previous = set_blocking_observer(None).unwrap();
    assert!(Rc::ptr_eq(&previous, &(counter.clone() as Rc<dyn BlockingObserver>)));
    let _ = pending::<()>().wait_timeout(SHORT);
    assert_eq!(counter.counts(), (0, 0));
}
