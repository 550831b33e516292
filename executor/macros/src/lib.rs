//! The attribute macros of `polypool`. Use them through that crate: `#[polypool::task]`, `#[polypool::main]`,
//! `#[polypool::managed]` and `#[polypool::update]`.
//!
//! | file | what it does |
//! | --- | --- |
//! | `input.rs` | reads the function and the options |
//! | `refuse.rs` | finds what can't be a task or a `main`, and says what to write instead |
//! | `task.rs` | writes the call as a value |
//! | `main_fn.rs` | writes the program around `main` |
//! | `managed.rs` | writes the proxy of a type, and what a manager calls |
//! | `managed_trait.rs` | the same for all types that implement a trait |
//! | `update.rs` | writes a step that a manager makes |
//!
//! What is written names polypool as `::polypool`, or by the path given with `crate = …`, and reaches serde, linkme and
//! tokio through it: a program needs none of them among its own dependencies to use the macros.

#![forbid(unsafe_code)]

mod input;
mod main_fn;
mod managed;
mod managed_trait;
mod refuse;
mod task;
mod update;

use proc_macro::TokenStream;

/// Makes a function a task: a call of it can be written as a value, and any executor can run that value, in another
/// thread, process or machine.
///
/// The function stays as it is. Beside it appears a struct of the same name, with the function's arguments as fields
/// and with its visibility:
///
/// ```
/// use polypool::Task;
///
/// /// Whether `n` is prime.
/// #[polypool::task]
/// fn is_prime(n: u64) -> bool {
///     n >= 2 && (2..n).all(|d| n % d != 0)
/// }
///
/// assert!(is_prime(7)); // the call, here and now
/// let call = is_prime { n: 7 }; // the same call as a value
/// assert_eq!(format!("{call:?}"), "is_prime { .. }");
/// assert_eq!(is_prime::SIGNATURE, "fn(n: u64) -> bool");
/// ```
///
/// An executor takes the value with `pool.submit(is_prime { n: 7 })`. A task without arguments is written with empty
/// braces, `ping {}`. An `async fn` is run as a future.
///
/// # What can be a task
///
/// A free `fn` or `async fn` that owns its arguments and its result. All of their types are serialisable with serde and
/// `Send`; the future of an `async fn` is `Send` as well. What is not like that is refused at compile time, with what
/// to write instead:
///
/// - `String` for `&str`, `Vec<T>` for `&[T]`, `T` for `&T`: arguments may travel to another process;
/// - one task for each type instead of a generic one, which calls the generic function: a task is found by its name;
/// - concrete types instead of `impl Trait`: a value is decoded where its type is not known otherwise;
/// - a name and a `let` in the body instead of a pattern: arguments become fields;
/// - a free function instead of a method. One that takes `self` is told so; on an associated function without it the
///   compiler reports a struct that is not supported in an `impl`.
///
/// The struct is a type of the module, so nothing else there can be a type or a module of that name: where there is a
/// `mod resize`, a task called `resize` has to live in it, or to be called `resize_image`.
///
/// # Options
///
/// - `#[task(name = "…")]`: the name under which workers find the function. It must be unique in the program; by
///   default it is the path of the function, `my_crate::images::resize`. Give one if programs of different versions
///   share work, and the function may move; or if two functions have one path, such as helpers inside two other
///   functions.
/// - `#[task(crate = path)]`: where polypool is, for a crate that re-exports it. By default `::polypool`.
///
/// ```
/// mod toolbox {
///     pub use polypool as pools;
/// }
///
/// #[toolbox::pools::task(name = "resize, second edition", crate = toolbox::pools)]
/// async fn resize(mut image: Vec<u8>, width: u32) -> Result<Vec<u8>, String> {
///     image.truncate(width as usize);
///     Ok(image)
/// }
///
/// use toolbox::pools::Task;
/// assert_eq!(resize::NAME, "resize, second edition");
/// assert!(resize::IS_ASYNC);
/// ```
///
/// # Arguments
///
/// An argument may be declared `mut`. Documentation of an argument goes to its field. A type without serde is accepted
/// with `#[serde(with = "…")]`, which works as on a field:
///
/// ```
/// use serde::{Deserialize, Deserializer, Serializer};
///
/// struct Celsius(f64);
///
/// mod celsius {
/// #   use super::*;
///     pub fn serialize<S: Serializer>(value: &Celsius, serializer: S) -> Result<S::Ok, S::Error> {
///         serializer.serialize_f64(value.0)
///     }
///     pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Celsius, D::Error> {
///         f64::deserialize(deserializer).map(Celsius)
///     }
/// }
///
/// #[polypool::task]
/// fn kelvin(
///     /// From a thermometer.
///     #[serde(with = "celsius")]
///     value: Celsius,
/// ) -> f64 {
///     value.0 + 273.15
/// }
/// # fn main() { let _ = kelvin { value: Celsius(kelvin(Celsius(0.0))) }; }
/// ```
///
/// Byte buffers are encoded as one block instead of byte by byte where the type is written `Vec<u8>` or
/// `Option<Vec<u8>>`, in results also `Result<Vec<u8>, E>`. For buffers further inside, use the `serde_bytes` crate in
/// your types.
///
/// The struct is an ordinary serde type, with names in JSON and elsewhere. Between a pool and its workers the arguments
/// go in their order, without the names.
///
/// # What it writes
///
/// For `is_prime`, shortened:
///
/// ```text
/// fn is_prime(n: u64) -> bool { … }
///
/// #[derive(Serialize, Deserialize)]
/// struct is_prime { n: u64 }
///
/// impl Debug for is_prime { … } // its name; arguments need no `Debug`, and stay out of logs
///
/// impl Task for is_prime {
///     type Output = bool;
///     const NAME: &'static str = concat!(module_path!(), "::is_prime");
///     const SIGNATURE: &'static str = "fn(n: u64) -> bool";
///     const IS_ASYNC: bool = false;
///     fn run(self) -> Run<bool> { Run::Ready(is_prime(self.n)) }
/// }
/// polypool::register!(is_prime);
/// ```
#[proc_macro_attribute]
pub fn task(options: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(options.into(), item.into()).into()
}

/// Lets the program start itself as a worker, and an `async fn main` have a runtime.
///
/// A worker process is this same program, started again. The macro puts `polypool::init()` before everything else in
/// `main`: in a worker that call serves tasks and never returns; otherwise it returns at once, and `main` goes on.
///
/// ```
/// #[polypool::main]
/// fn main() {
///     println!("this is the program, not a worker");
/// }
/// ```
///
/// An `async fn main` runs on a tokio runtime with timers and sockets. The program does not need to depend on tokio for
/// that. `main` may return whatever a `main` may return:
///
/// ```
/// #[polypool::main(flavor = "current_thread")]
/// async fn main() -> Result<(), std::num::ParseIntError> {
///     let answer: u32 = "42".parse()?;
///     println!("{answer}");
///     Ok(())
/// }
/// ```
///
/// # Options
///
/// - `flavor = "multi_thread"`, the default, or `flavor = "current_thread"`: whether the runtime has threads of its own
///   or runs on that of `main`. Only for `async fn main`.
/// - `worker_threads = n`: how many threads the runtime has; by default, one for each core. These are the threads that
///   drive futures, not the workers of a pool. Only for `async fn main`.
/// - `crate = path`: where polypool is, for a crate that re-exports it. By default `::polypool`.
///
/// # When not to use it
///
/// If `main` must build its runtime in another way, call `polypool::init()` yourself, as the first statement of a plain
/// `fn main` and before any thread is started. Together with `#[tokio::main]` on the same function the macro is
/// refused, because the runtime would be running before `init()` is called.
///
/// # Panics
///
/// `main` panics before its first statement if the operating system refuses the runtime its threads or its event queue.
#[proc_macro_attribute]
pub fn main(options: TokenStream, item: TokenStream) -> TokenStream {
    main_fn::expand(options.into(), item.into()).into()
}

/// Lets a manager hold values of a type, and other processes call their methods.
///
/// Put it on the type's own `impl`. The public methods with `&self` or `&mut self` are those that can be called; beside
/// the type appears a proxy, `CounterProxy` for `Counter`, with the same methods, each of which returns a
/// `polypool::manager::Call`: to be awaited, or waited for.
///
/// ```
/// use polypool::manager::Manager;
///
/// struct Counter {
///     total: u64,
/// }
///
/// #[polypool::managed]
/// impl Counter {
///     pub fn new(start: u64) -> Self {
///         Counter { total: start }
///     }
///
///     pub fn add(&mut self, n: u64) -> u64 {
///         self.total += n;
///         self.total
///     }
///
///     pub fn total(&self) -> u64 {
///         self.total
///     }
/// }
///
/// # fn main() -> Result<(), polypool::manager::ManagerError> {
/// let manager = Manager::in_thread()?;
/// let counter = CounterProxy::new(&manager, 40).wait()?; // made in the manager
/// assert_eq!(counter.add(2).wait()?, 42);
/// assert_eq!(counter.total().wait()?, 42);
/// # Ok(())
/// # }
/// ```
///
/// Calls of `&self` methods run side by side, one of a `&mut self` method runs alone. A panic is the error of its call;
/// the value lives on as the panic left it. Arguments and results own what they hold and are data (serde); the type
/// itself is `Send` and `Sync`, and need not be data.
///
/// How a value gets into a manager:
///
/// - by a constructor: a public function without `self` that returns `Self` or `Result<Self, E>`, as `new` above. It
///   runs in the manager's process;
/// - by `manager.create(&value)`, a copy, if the type is data;
/// - by `manager.host(value)`, if the manager is in this process.
///
/// What can't be: generic types and methods, `async` methods (the calls can be awaited all the same), methods that take
/// `self` by value. `#[managed(skip)]` leaves a public method out.
///
/// # Traits
///
/// On a trait it makes one proxy for all types that implement it: whoever calls need not know which it is.
///
/// ```
/// use polypool::manager::Manager;
/// use serde::{Deserialize, Serialize};
///
/// #[polypool::managed]
/// pub trait Counter {
///     fn add(&mut self, n: u64) -> u64;
///     fn total(&self) -> u64;
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct Plain(u64);
///
/// #[polypool::managed] // so that a manager in another process finds it
/// impl Counter for Plain {
///     fn add(&mut self, n: u64) -> u64 {
///         self.0 += n;
///         self.0
///     }
///     fn total(&self) -> u64 {
///         self.0
///     }
/// }
///
/// struct Doubling(u64);
///
/// impl Counter for Doubling {
///     fn add(&mut self, n: u64) -> u64 {
///         self.0 += 2 * n;
///         self.0
///     }
///     fn total(&self) -> u64 {
///         self.0
///     }
/// }
///
/// # fn main() -> Result<(), polypool::manager::ManagerError> {
/// let manager = Manager::in_thread()?;
/// let counters = [
///     CounterProxy::create(&manager, &Plain(40)).wait()?, // a copy; for any manager
///     CounterProxy::host(&manager, Doubling(40))?,        // the value itself; for a manager in this process
/// ];
/// assert_eq!(counters[0].add(1).wait()?, 41);
/// assert_eq!(counters[1].add(1).wait()?, 42);
/// # Ok(())
/// # }
/// ```
///
/// All methods of the trait are the object's, those with a body too; `#[managed(skip)]` leaves one out. A function
/// without `self` that returns `Self` or `Result<Self, E>` is a constructor, to which the proxy is told the type: with
/// `fn new(start: u64) -> Self` in the trait, `CounterProxy::new::<Doubling>(&manager, 40)` makes one in the manager's
/// process.
///
/// On an `impl` of such a trait it registers the type, for `create` and constructors. The proxy must be where the trait
/// is: who writes `use shop::Counter;` also writes `use shop::CounterProxy;`. A trait is not generic and has no
/// associated types, since its proxy stands for all who implement it.
///
/// # Options
///
/// - `#[managed(name = "…")]`: the name under which the manager's program finds the type; by default its path. Not on a
///   trait.
/// - `#[managed(proxy = Name)]`: the name of the proxy; on an `impl` of a trait the name that the trait has given it.
/// - `#[managed(crate = path)]`: where polypool is, for a crate that re-exports it. By default `::polypool`.
#[proc_macro_attribute]
pub fn managed(options: TokenStream, item: TokenStream) -> TokenStream {
    managed::expand(options.into(), item.into()).into()
}

/// Makes a function a step that a manager can make with a value it holds, so that nobody comes between reading and
/// writing.
///
/// The first argument is the value, `&mut T`; in a dict `&mut Option<T>`, which is `None` for an absent key and removes
/// the key if it is left `None`. The other arguments become the fields of a struct of the function's name, as with
/// `#[task]`.
///
/// ```
/// use polypool::manager::Manager;
///
/// #[polypool::update]
/// fn add(count: &mut Option<u64>, n: u64) -> u64 {
///     *count.insert(count.unwrap_or(0) + n)
/// }
///
/// # fn main() -> Result<(), polypool::manager::ManagerError> {
/// let manager = Manager::in_thread()?;
/// let words = manager.dict::<String, u64>().wait()?;
/// assert_eq!(words.update(&"the".to_owned(), add { n: 2 }).wait()?, 2);
/// assert_eq!(words.update(&"the".to_owned(), add { n: 3 }).wait()?, 5);
/// # Ok(())
/// # }
/// ```
///
/// If the function panics, the value stays as it was. Options are `name` and `crate`, as those of `#[task]`.
#[proc_macro_attribute]
pub fn update(options: TokenStream, item: TokenStream) -> TokenStream {
    update::expand(options.into(), item.into()).into()
}
