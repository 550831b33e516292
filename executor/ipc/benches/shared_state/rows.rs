//! The rows: which operations are measured, in which unit, and what their goals are.

/// One operation.
#[derive(Debug)]
pub(crate) struct Row {
    /// How the command line and the parts call it.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) goal: Goal,
    /// What Python does, if that can't be measured.
    pub(crate) python: Python,
    pub(crate) cores: usize,
}

/// What an operation counts for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// Operations a second.
    Ops,
    /// So many elements an operation, elements a second.
    Elements(u64),
    /// So many bytes an operation, bytes a second.
    Bytes(u64),
    /// The time that one operation takes; so many of them a round.
    Time(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// So many times Python.
    Times(f64),
    /// So many operations a second.
    Rate(f64),
    /// At most so many seconds an operation.
    Seconds(f64),
    /// None of its own: stands beside another row, to be compared with.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Python {
    Measured,
    /// Python has no such operation.
    Lacks,
    /// Python waits for ever.
    Never,
}

/// Elements of the array of `array-slice`.
pub(crate) const SLICE: usize = 4096;
/// Bytes of a large message.
pub(crate) const LARGE: usize = 1 << 20;
/// Bytes of the memory that is copied.
pub(crate) const HOT: usize = 64 << 20;
/// Requests in flight.
pub(crate) const IN_FLIGHT: usize = 32;

const fn row(name: &'static str, title: &'static str, cores: usize, unit: Unit, goal: Goal) -> Row {
    Row { name, title, unit, goal, python: Python::Measured, cores }
}

const fn without_python(row: Row, python: Python) -> Row {
    Row { python, ..row }
}

pub(crate) const ROWS: &[Row] = &[
    row("value-one", "Value += 1 under its lock, one process", 1, Unit::Ops, Goal::Times(20.0)),
    row("value-two", "Value += 1 under its lock, two processes contending", 2, Unit::Ops, Goal::Times(20.0)),
    without_python(row("atomic-one", "AtomicValue += 1, one process", 1, Unit::Ops, Goal::None), Python::Lacks),
    without_python(
        row("atomic-two", "AtomicValue += 1, two processes contending", 2, Unit::Ops, Goal::None),
        Python::Lacks,
    ),
    row("lock", "Lock: acquire and release, uncontended", 1, Unit::Ops, Goal::Times(3.0)),
    row("array-element", "Array: one element += 1", 1, Unit::Ops, Goal::Times(50.0)),
    row("array-slice", "Array: all elements += 1 under the lock", 1, Unit::Elements(SLICE as u64), Goal::Times(1000.0)),
    row("manager-one-core", "Manager dict: set, get; sequential, one core", 1, Unit::Ops, Goal::Times(1.3)),
    row("manager-two-cores", "Manager dict: set, get; sequential, two cores", 2, Unit::Ops, Goal::Times(10.0)),
    without_python(
        row("manager-in-flight", "Manager dict: get, 32 started, then waited for", 2, Unit::Ops, Goal::Rate(500_000.0)),
        Python::Lacks,
    ),
    without_python(
        row("manager-futures", "Manager dict: get, 32 futures in flight", 2, Unit::Ops, Goal::Rate(500_000.0)),
        Python::Lacks,
    ),
    row("queue", "Queue: small messages between two processes", 2, Unit::Ops, Goal::Times(30.0)),
    row("pipe-one-core", "Pipe: round trip, one core", 1, Unit::Ops, Goal::Times(1.5)),
    row("pipe-two-cores", "Pipe: round trip, two cores, both busy", 2, Unit::Ops, Goal::Times(20.0)),
    row("pipe-large", "Pipe: messages of 1 MiB", 2, Unit::Bytes(LARGE as u64), Goal::Times(10.0)),
    row("event", "Event: round trip, two cores", 2, Unit::Ops, Goal::Times(3.0)),
    row("condition", "Condition: round trip, two cores", 2, Unit::Ops, Goal::Times(3.0)),
    row("barrier", "Barrier: crossed by two, two cores", 2, Unit::Ops, Goal::Times(3.0)),
    row("memory-copy", "SharedMemory: 64 MiB copied in, hot", 1, Unit::Bytes(HOT as u64), Goal::Times(1.0)),
    row("memory-attach", "SharedMemory: attach by name, read, detach", 1, Unit::Ops, Goal::Times(2.0)),
    row("list-get", "ShareableList: get", 1, Unit::Ops, Goal::Times(50.0)),
    row("list-set", "ShareableList: set", 1, Unit::Ops, Goal::Times(50.0)),
    without_python(
        row("kill", "the next locker after the holder's SIGKILL", 2, Unit::Time(5), Goal::Seconds(0.001)),
        Python::Never,
    ),
];
