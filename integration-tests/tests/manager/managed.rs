//! The user's own types.

use integration_tests::{Row, rows};
use polypool::manager::{Managed as _, Manager, ManagerError, Proxy as _};
use serde::{Deserialize, Serialize};

use crate::common::both;

pub(crate) const ROWS: &[Row<fn()>] = rows![
    methods_run_in_the_server,
    values_are_made_by_constructors_and_copies,
    a_panic_is_the_error_of_its_call,
    another_type_under_a_name_is_refused,
    an_object_that_calls_itself_is_told_so,
    one_proxy_stands_for_all_who_implement_a_trait,
    a_trait_of_other_methods_is_refused,
];

#[derive(Serialize, Deserialize)]
struct Counter {
    total: u64,
}

#[polypool::managed]
impl Counter {
    pub(crate) fn new(start: u64) -> Self {
        Counter { total: start }
    }

    pub(crate) fn checked(start: i64) -> Result<Self, String> {
        let total = u64::try_from(start).map_err(|_| format!("{start} is less than nothing"))?;
        Ok(Counter { total })
    }

    pub(crate) fn add(&mut self, n: u64) -> u64 {
        self.total += n;
        self.total
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn pid(&self) -> u32 {
        self.own_pid()
    }

    pub(crate) fn fall(&mut self) {
        self.total = 99;
        panic!("fell");
    }

    pub(crate) fn add_itself(&mut self, own: CounterProxy) -> String {
        own.add(1).wait().map_or_else(|error| error.to_string(), |total| total.to_string())
    }

    #[managed(skip)]
    pub(crate) fn by_reference(&self) -> &u64 {
        &self.total
    }

    fn own_pid(&self) -> u32 {
        std::process::id()
    }
}

fn methods_run_in_the_server() {
    let manager = Manager::start().unwrap();
    let counter = CounterProxy::new(&manager, 40).wait().unwrap();
    assert_eq!(counter.add(2).wait().unwrap(), 42);
    assert_eq!(counter.total().wait().unwrap(), 42);
    let pid = counter.pid().wait().unwrap();
    assert_ne!(pid, std::process::id());
    assert_eq!(manager.pid(), Some(pid));
    assert_eq!(
        Counter::SCHEMA,
        "Counter { new(start: u64) -> Self; checked(start: i64) -> Self; add(&mut self, n: u64) -> u64; \
         total(&self) -> u64; pid(&self) -> u32; fall(&mut self); add_itself(&mut self, own: CounterProxy) -> String }"
    );
    assert_eq!(*Counter::new(1).by_reference(), 1);
}

fn values_are_made_by_constructors_and_copies() {
    both(|manager| {
        assert_eq!(CounterProxy::checked(manager, 7).wait().unwrap().total().wait().unwrap(), 7);
        let error = CounterProxy::checked(manager, -7).wait().unwrap_err();
        assert!(matches!(&error, ManagerError::Constructor(why) if &**why == "-7 is less than nothing"), "{error}");
        assert_eq!(manager.create(&Counter { total: 3 }).wait().unwrap().total().wait().unwrap(), 3);
        match (manager.pid(), manager.host(Counter { total: 4 })) {
            (None, hosted) => assert_eq!(hosted.unwrap().total().wait().unwrap(), 4),
            (Some(_), hosted) => assert!(matches!(hosted, Err(ManagerError::InvalidOption(_)))),
        }
    });
}

fn a_panic_is_the_error_of_its_call() {
    both(|manager| {
        let counter = CounterProxy::new(manager, 1).wait().unwrap();
        let error = counter.fall().wait().unwrap_err();
        let ManagerError::Panicked(report) = error else { panic!("{error}") };
        assert_eq!(report.message.as_deref(), Some("fell"));
        // It lives on, as the panic left it.
        assert_eq!(counter.total().wait().unwrap(), 99);
    });
}

fn another_type_under_a_name_is_refused() {
    both(|manager| {
        let counter = CounterProxy::new(manager, 1).wait().unwrap();
        manager.publish("it", &counter).wait().unwrap();
        let error = manager.get::<polypool::manager::LockProxy>("it").wait().unwrap_err();
        let ManagerError::SchemaMismatch { expected, found } = error else { panic!("{error}") };
        assert_eq!((&*expected, &*found), ("lock", Counter::SCHEMA));

        // And what was written down as another type, at its first use.
        let text = serde_json::to_string(&counter).unwrap();
        let wrong: polypool::manager::QueueProxy<u8> = serde_json::from_str(&text).unwrap();
        let error = wrong.len().wait().unwrap_err();
        let ManagerError::SchemaMismatch { expected, found } = error else { panic!("{error}") };
        assert_eq!((&*expected, &*found), ("queue<u8>", Counter::SCHEMA));
        let right: CounterProxy = serde_json::from_str(&text).unwrap();
        assert_eq!(right.with_own_connection().total().wait().unwrap(), 1);
        assert!(matches!(manager.named("it").lock().wait(), Err(ManagerError::SchemaMismatch { .. })));
    });
}

fn an_object_that_calls_itself_is_told_so() {
    both(|manager| {
        let counter = CounterProxy::new(manager, 1).wait().unwrap();
        let said = counter.add_itself(counter.clone()).wait().unwrap();
        assert_eq!(said, ManagerError::WouldDeadlock.to_string());
    });
}

/// Keeps a sum.
#[polypool::managed]
pub(crate) trait Sum {
    fn from_start(start: u64) -> Self;

    fn add(&mut self, n: u64) -> u64;

    fn pid(&self) -> u32 {
        std::process::id()
    }
}

#[derive(Serialize, Deserialize)]
struct Plain(u64);

#[polypool::managed]
impl Sum for Plain {
    fn from_start(start: u64) -> Self {
        Plain(start)
    }

    fn add(&mut self, n: u64) -> u64 {
        self.0 += n;
        self.0
    }
}

/// Not data.
struct Doubling(std::sync::Mutex<u64>);

#[polypool::managed]
impl Sum for Doubling {
    fn from_start(start: u64) -> Self {
        Doubling(start.into())
    }

    fn add(&mut self, n: u64) -> u64 {
        let sum = self.0.get_mut().unwrap();
        *sum += 2 * n;
        *sum
    }
}

#[polypool::task]
fn add_in_a_worker(sum: SumProxy, n: u64) -> u64 {
    sum.add(n).wait().expect("the sum")
}

fn one_proxy_stands_for_all_who_implement_a_trait() {
    both(|manager| {
        let mut sums: Vec<SumProxy> = vec![
            SumProxy::create(manager, &Plain(10)).wait().unwrap(),
            SumProxy::from_start::<Plain>(manager, 10).wait().unwrap(),
            SumProxy::from_start::<Doubling>(manager, 9).wait().unwrap(),
        ];
        match (manager.pid(), SumProxy::host(manager, Doubling(9.into()))) {
            (None, hosted) => sums.push(hosted.unwrap()),
            (Some(_), hosted) => assert!(matches!(hosted, Err(ManagerError::InvalidOption(_)))),
        }
        let pid = manager.pid().unwrap_or_else(std::process::id);
        let pool = crate::common::pool(polypool::StartMethod::Spawn, 1);
        for sum in sums {
            assert_eq!(sum.pid().wait().unwrap(), pid);
            let added = polypool::ExecutorExt::submit(&pool, add_in_a_worker { sum: sum.clone(), n: 1 });
            assert_eq!(crate::common::soon(added).unwrap(), 11);
            manager.publish("sum", &sum).wait().unwrap();
            let found = manager.get::<SumProxy>("sum").wait().unwrap();
            assert!(found.add(1).wait().unwrap() > 11);
            manager.unpublish("sum").wait().unwrap();
        }
    });
}

mod other {
    use serde::{Deserialize, Serialize};

    /// The same name, and fewer methods.
    #[polypool::managed]
    pub(crate) trait Sum {
        fn add(&mut self, n: u64) -> u64;
    }

    #[derive(Serialize, Deserialize)]
    pub(crate) struct Plain(pub(crate) u64);

    #[polypool::managed]
    impl Sum for Plain {
        fn add(&mut self, n: u64) -> u64 {
            self.0 += n;
            self.0
        }
    }
}

fn a_trait_of_other_methods_is_refused() {
    both(|manager| {
        let sum = other::SumProxy::create(manager, &other::Plain(1)).wait().unwrap();
        assert_eq!(sum.add(1).wait().unwrap(), 2);
        manager.publish("sum", &sum).wait().unwrap();
        let error = manager.get::<SumProxy>("sum").wait().unwrap_err();
        let ManagerError::SchemaMismatch { expected, found } = error else { panic!("{error}") };
        assert_eq!((&*expected, &*found), (&*SumProxy::schema(), &*other::SumProxy::schema()));
        let text = serde_json::to_string(&sum).unwrap();
        let wrong: SumProxy = serde_json::from_str(&text).unwrap();
        assert!(matches!(wrong.add(1).wait(), Err(ManagerError::SchemaMismatch { .. })));
    });
}
