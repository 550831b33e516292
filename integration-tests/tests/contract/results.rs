//! Outcomes: values, failures, and what their texts say.

use integration_tests::tasks::{double, panic_with_literal, panic_with_number, panic_with_text, return_error};
use integration_tests::{ContractRow, Fixture, Waiting, rows, seconds};
use polypool::{ExecutorExt, PanicReport, TaskError, TaskState};

pub(crate) const ROWS: &[ContractRow] =
    rows![p14_returned_error_is_a_value_and_a_panic_a_failure, outcome_is_handed_out_once,];

fn report(error: &TaskError) -> &PanicReport {
    match error {
        TaskError::Panicked(report) => report,
        other => panic!("not a panic: {other}"),
    }
}

fn p14_returned_error_is_a_value_and_a_panic_a_failure(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    for waiting in Waiting::BOTH {
        let returned = waiting.outcome(pool.submit(return_error { text: "no luck".into() }));
        assert_eq!(returned.unwrap(), Err("no luck".to_owned()));

        let error = waiting.outcome(pool.submit(panic_with_literal {})).unwrap_err();
        assert_eq!(report(&error).message.as_deref(), Some("a literal"));
        assert!(error.to_string().ends_with(": a literal"), "{error}");
        let place = report(&error).location.as_ref().expect("the place of the panic");
        assert!(place.file.ends_with("tasks.rs") && place.line > 1, "{place:?}");
        assert!(error.to_string().contains(&format!("{}:{}", place.file, place.line)), "{error}");

        let error = waiting.outcome(pool.submit(panic_with_text { text: "so".into() })).unwrap_err();
        assert_eq!(report(&error).message.as_deref(), Some("said so"));
        assert!(error.to_string().ends_with(": said so"), "{error}");

        let error = waiting.outcome(pool.submit(panic_with_number {})).unwrap_err();
        assert_eq!(report(&error).message, None);
        assert!(error.to_string().contains("a payload that is not text"), "{error}");

        assert_eq!(waiting.outcome(pool.submit(double { n: 8 })).unwrap(), 16, "the next task is unaffected");
    }
    let workers = pool.stats().workers;
    assert_eq!((workers.len(), workers[0].index), (1, 0), "the worker lives on");
}

fn outcome_is_handed_out_once(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let mut task = pool.submit(double { n: 1 });
    assert_eq!(task.wait_timeout(seconds(30)).unwrap().unwrap(), 2);
    assert_eq!(task.state(), TaskState::Succeeded);
    assert!(matches!(task.wait(), Err(TaskError::OutcomeTaken)));
}
