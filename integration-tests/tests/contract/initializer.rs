//! The initialiser, and a pool that it breaks.

use std::collections::BTreeSet;

use integration_tests::tasks::{double, initialized};
use integration_tests::{Board, ContractRow, Fixture, Initializer, Pool, Spec, Waiting, rows, seconds};
use polypool::{ExecutorExt, Shutdown, SubmitError, TaskError, TaskFuture};

pub(crate) const ROWS: &[ContractRow] =
    rows![p43_initializer_runs_once_in_each_worker_before_its_first_task, p44_failing_initializer_breaks_the_pool];

fn p43_initializer_runs_once_in_each_worker_before_its_first_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let traces = board.traces();
    let initializer = Initializer { traces: traces.clone(), failure: None };
    let pool = executor.build(Spec::workers(3).initializer(initializer));
    let gate = board.gate("hold");
    let mut tasks: Vec<_> = (0..3).map(|_| pool.submit(initialized { gate: gate.clone() })).collect();
    gate.wait_for_arrivals(3);
    gate.open();
    // And some more on the same workers.
    tasks.extend((0..20).map(|_| pool.submit(initialized { gate: gate.clone() })));
    let mut workers = BTreeSet::new();
    for task in tasks {
        let (here, on_thread, in_process) = task.wait().unwrap();
        workers.insert(executor.worker(&here));
        if executor.has_processes() {
            assert_eq!(in_process, 1, "each task sees its effect, once");
        } else {
            assert_eq!(on_thread, 1, "each task sees its effect, once");
        }
    }
    assert_eq!(workers.len(), 3);
    assert_eq!(traces.count(), 3, "{:?}", traces.all());
}

fn broken(task: TaskFuture<u64>, waiting: Waiting) {
    let error = waiting.outcome(task).unwrap_err();
    assert!(matches!(error, TaskError::Rejected(SubmitError::Broken(_))), "{error:?}");
    assert!(error.to_string().contains("no licence"), "the message is reachable: {error}");
}

fn p44_failing_initializer_breaks_the_pool(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let initializer = Initializer { traces: board.traces(), failure: Some("no licence".to_owned()) };
        let pool: Pool = executor.build(Spec::workers(2).initializer(initializer));
        let pending: Vec<_> = (0..5).map(|n| pool.submit(double { n })).collect();
        for task in pending {
            broken(task, waiting);
        }
        broken(pool.submit(double { n: 1 }), waiting);
        let error = pool.try_submit(double { n: 1 }).unwrap_err().error;
        assert!(matches!(error, SubmitError::Broken(_)), "told apart from \"shut down\": {error:?}");
        let mut terminated = pool.shutdown(Shutdown::Drain);
        terminated.wait_timeout(seconds(5)).expect("a broken pool can be shut down");
        broken(pool.submit(double { n: 1 }), waiting);
        assert!(board.traces().count() >= 1);
    }
}
