//! What a program has of a manager: [`Manager`], which owns the server, [`ManagerBuilder`], which starts it, and
//! [`ManagerProxy`], by which any process makes and finds objects.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use polypool_ipc::Fd;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::builtin::{
    self, BarrierProxy, ConditionProxy, DictProxy, EventProxy, ListProxy, LockProxy, NamespaceProxy, QueueProxy,
    RLockProxy, SemaphoreProxy, SetProxy, ValueProxy,
};
use super::client::MAX_MESSAGE;
use super::error::ManagerError;
use super::hosted::{self, BY_VALUE, Implements, Managed, TYPE_PREFIX};
use super::proxy::{Call, Proxy, Remote, Undo, forget, number, set_security};
use super::secrets;
use super::server::{ManagerStats, Server, Settings};
use super::transport::{Address, BindTo, ClientSecurity, Limits, ServerSecurity};
use super::wire::{Fields, Request, root};
use super::{AuthKey, Data};
use crate::error::{BuildError, TaskError};
use crate::executor::{Executor as _, ExecutorExt as _, Shutdown};
use crate::process::ProcessPool;
use crate::task::{Run, Task};

/// A server of objects, and its owner: dropping it shuts the server down, and all objects end with it.
///
/// It is used like its [`ManagerProxy`], which [`proxy`](Self::proxy) gives to others.
#[must_use = "dropping a manager shuts it down"]
pub struct Manager {
    proxy: ManagerProxy,
    address: Address,
    place: Place,
}

enum Place {
    Here(Arc<Server>),
    Process(ProcessPool),
    /// Let go of untouched, in a forked child.
    Inherited,
}

impl Manager {
    /// Starts a server in a process of its own, for processes of this user on this machine.
    ///
    /// The process is this program started again, as the workers of a [`ProcessPool`] are; see [`init`](crate::init).
    /// It ends with this process, however that ends.
    ///
    /// # Errors
    /// See [`ManagerBuilder::start`].
    pub fn start() -> Result<Self, ManagerError> {
        Self::builder().start()
    }

    /// Starts a server on threads of this process, for processes of this user on this machine.
    ///
    /// # Errors
    /// See [`ManagerBuilder::in_thread`].
    pub fn in_thread() -> Result<Self, ManagerError> {
        Self::builder().in_thread()
    }

    /// A manager made to measure.
    pub fn builder() -> ManagerBuilder {
        ManagerBuilder {
            bind: BindTo::default(),
            security: ServerSecurity::new(),
            client: None,
            max_message: Limits::default().max_message as u64,
            max_connections: Limits::default().max_connections,
            max_requests_per_second: None,
            transit: Duration::from_secs(600),
        }
    }

    /// The manager that another process has started at `address`. Connects now; what key is needed is told before, with
    /// [`set_security`].
    ///
    /// # Errors
    /// [`ManagerError::ServerGone`] if nobody answers; [`ManagerError::NoKey`] or [`ManagerError::Connect`] if the
    /// server is not satisfied.
    pub fn connect(address: &Address) -> Result<ManagerProxy, ManagerError> {
        let proxy = ManagerProxy::new(Remote::root(address.clone()));
        proxy.ping().wait()?;
        Ok(proxy)
    }

    /// Where the server is.
    #[must_use = "it has no effect but its result"]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What other processes, and other parts of this program, use the manager by.
    pub fn proxy(&self) -> ManagerProxy {
        self.proxy.clone()
    }

    /// Puts a value into a server that runs in this process; see [`in_thread`](Self::in_thread). The value need not be
    /// data.
    ///
    /// # Errors
    /// [`ManagerError::InvalidOption`] if the server is a process of its own, which can be given only what is data,
    /// with [`create`](ManagerProxy::create), or what a constructor of the type makes there.
    pub fn host<T: Managed>(&self, value: T) -> Result<T::Proxy, ManagerError> {
        self.proxy.remote.0.check_origin()?;
        let Place::Here(server) = &self.place else {
            return Err(ManagerError::InvalidOption(
                "host(..) needs a manager in this process: take Manager::in_thread(), or create(..), or a constructor",
            ));
        };
        let slot = server.insert(hosted::host(value), T::SCHEMA, None).map_err(|failure| failure.explain(T::SCHEMA))?;
        server.hold(slot.id);
        let remote = Remote::unattached(&self.address, T::SCHEMA, server.generation, slot.id);
        remote.0.attach()?;
        Ok(T::Proxy::from_remote(remote))
    }

    /// The process of the server, if it has one of its own.
    #[must_use = "it has no effect but its result"]
    pub fn pid(&self) -> Option<u32> {
        match &self.place {
            Place::Process(pool) if !self.is_inherited() => pool.stats().workers.first().and_then(|worker| worker.pid),
            _ => None,
        }
    }

    /// Ends the server: its objects are dropped, connections are closed, whoever waits for something gets an error.
    /// Methods that run are waited for, for 5 seconds at most. Called again, it does nothing.
    ///
    /// In a child of a plain `fork` it does nothing: the server is the parent's.
    pub fn shutdown(&self) {
        if self.is_inherited() {
            return;
        }
        forget(&self.address);
        match &self.place {
            Place::Here(server) => server.shut_down(),
            Place::Process(pool) => {
                let _ = pool.shutdown(Shutdown::Now).wait_timeout(Duration::from_secs(10));
            }
            Place::Inherited => {}
        }
    }

    /// Whether this is a child of a plain `fork`, and the server that of its parent.
    fn is_inherited(&self) -> bool {
        self.proxy.remote.0.is_inherited()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if self.is_inherited() {
            // Also what it is made of would close the parent's sockets.
            std::mem::forget(std::mem::replace(&mut self.place, Place::Inherited));
        }
        self.shutdown();
    }
}

impl Deref for Manager {
    type Target = ManagerProxy;

    fn deref(&self) -> &ManagerProxy {
        &self.proxy
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("address", &format_args!("{}", self.address))
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

/// Starts a [`Manager`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until .start(), .in_thread() or .serve_forever(..)"]
pub struct ManagerBuilder {
    bind: BindTo,
    security: ServerSecurity,
    client: Option<ClientSecurity>,
    max_message: u64,
    max_connections: usize,
    max_requests_per_second: Option<u32>,
    transit: Duration,
}

impl ManagerBuilder {
    /// Where the server listens; by default at a Unix socket for processes of this user, under a random name.
    pub fn bind(mut self, bind: BindTo) -> Self {
        self.bind = bind;
        self
    }

    /// The key that clients must know; necessary for TCP. This process knows it then; others are told with
    /// [`set_security`].
    pub fn auth_key(mut self, key: AuthKey) -> Self {
        self.security = self.security.key(key);
        self
    }

    /// The certificate for TLS. This process, as a client of its own manager, also needs to know what to trust:
    /// [`client_security`](Self::client_security).
    ///
    /// A server in a process of its own is sent the private key through a socket that only the two have, and what is
    /// copied on the way is wiped. In memory remains, of both processes: the PEM text, until the last clone of the
    /// [`ServerTls`](super::ServerTls) is dropped, which wipes it; and what the TLS library has made of it, the decoded
    /// key, which this library can't wipe.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: super::ServerTls) -> Self {
        self.security = self.security.tls(tls);
        self
    }

    /// How this process connects to its own manager; by default with the key of the server alone.
    pub fn client_security(mut self, security: ClientSecurity) -> Self {
        self.client = Some(security);
        self
    }

    /// The largest request or result in bytes, at most 1 GiB; by default 64 MiB. What is larger is refused with
    /// [`ManagerError::TooLarge`].
    pub fn max_message(mut self, bytes: u64) -> Self {
        self.max_message = bytes;
        self
    }

    /// How many processes may be connected at a time, at least 1; by default 4096.
    ///
    /// On Linux the first 128 of those that come by a Unix socket exchange their messages through shared memory: 132
    /// KiB each, and two descriptors on either side besides the socket. Further ones, and those for which the system
    /// has no more to give, use the socket, which is slower.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// How many requests a connection may make in a second, and at once, at least 1; by default any number. What is
    /// more is refused with [`ManagerError::Throttled`]; what gives something back, such as a lock, waits instead, and
    /// with it what comes after it over the same connection.
    pub fn max_requests_per_second(mut self, requests: u32) -> Self {
        self.max_requests_per_second = Some(requests);
        self
    }

    /// How long an object without a name is kept for a proxy that is on its way, while no process refers to it; by
    /// default 10 minutes. See "How long objects live" at [the module](crate::manager).
    pub fn transit(mut self, transit: Duration) -> Self {
        self.transit = transit;
        self
    }

    /// Starts the server on threads of this process.
    ///
    /// # Errors
    /// [`ManagerError::InvalidOption`] for numbers that can't work and for two types or updates of one name;
    /// [`ManagerError::Io`] if the system refuses the address or the threads.
    pub fn in_thread(self) -> Result<Manager, ManagerError> {
        self.check()?;
        let server = Server::start(&self.bind, &self.security, self.settings())?;
        let address = server.address();
        Ok(self.finish(address, Place::Here(server)))
    }

    /// Starts the server in a process of its own, which is this program started again.
    ///
    /// # Errors
    /// Those of [`in_thread`](Self::in_thread); [`ManagerError::Start`] if the process can't be started, such as in a
    /// program that has no [`init`](crate::init).
    pub fn start(self) -> Result<Manager, ManagerError> {
        self.check()?;
        let start = |error: BuildError| ManagerError::Start(Arc::new(error));
        let pool = ProcessPool::builder().workers(1).name_prefix("manager").build().map_err(start)?;
        let (setup, secrets) = Setup::of(&self)?;
        let call = pool.submit(ServeHere { setup });
        if let Some(secrets) = secrets {
            // If that fails, so does the call, which says why.
            let _ = secrets.send();
        }
        let served = call.wait();
        let failed = |why: String| start(BuildError::Io(io::Error::other(why)));
        match served {
            Ok(Ok(address)) => Ok(self.finish(address, Place::Process(pool))),
            Ok(Err(why)) => Err(failed(why)),
            Err(TaskError::Rejected(error)) => Err(failed(error.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// For a program that is nothing but a server: starts it on threads of this process, calls `ready` with the
    /// manager, which is where objects are made and named, and then serves until the process ends or `ready` has given
    /// away what [shuts it down](Manager::shutdown).
    ///
    /// # Errors
    /// Those of [`in_thread`](Self::in_thread), and that of `ready`.
    pub fn serve_forever(
        self,
        ready: impl FnOnce(&Arc<Manager>) -> Result<(), ManagerError>,
    ) -> Result<(), ManagerError> {
        let manager = Arc::new(self.in_thread()?);
        ready(&manager)?;
        if let Place::Here(server) = &manager.place {
            server.wait_for_end();
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ManagerError> {
        if self.max_message < 1024 || self.max_message > MAX_MESSAGE as u64 {
            return Err(ManagerError::InvalidOption("max_message takes 1 KiB to 1 GiB"));
        }
        if self.max_connections == 0 {
            return Err(ManagerError::InvalidOption("max_connections(0) can't work: nobody could use the manager"));
        }
        if self.max_requests_per_second == Some(0) {
            return Err(ManagerError::InvalidOption(
                "max_requests_per_second(0) can't work; leave it out for no limit",
            ));
        }
        match hosted::duplicate() {
            Some(name) => Err(ManagerError::DuplicateName(name)),
            None => Ok(()),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            max_requests_per_second: self.max_requests_per_second,
            transit: self.transit,
            limits: Limits {
                max_message: usize::try_from(self.max_message).unwrap_or(MAX_MESSAGE),
                max_connections: self.max_connections,
                ..Limits::default()
            },
        }
    }

    fn finish(self, address: Address, place: Place) -> Manager {
        let client = self.client.or_else(|| self.security.key.map(|key| ClientSecurity::new().key(key)));
        if let Some(client) = client {
            set_security(&address, client);
        }
        Manager { proxy: ManagerProxy::new(Remote::root(address.clone())), address, place }
    }
}

/// A manager's setup on its way to its process, over the private channel of the pool.
#[derive(Serialize, Deserialize)]
struct Setup {
    bind: Bind,
    /// Where the key of the server and that of its certificate come from.
    secrets: Option<Fd>,
    #[cfg(feature = "tls")]
    certificates: Option<Vec<u8>>,
    max_message: u64,
    max_connections: u64,
    max_requests_per_second: Option<u32>,
    transit: Duration,
}

impl Setup {
    fn of(builder: &ManagerBuilder) -> io::Result<(Self, Option<secrets::Sender>)> {
        let key = builder.security.key.as_ref().map(AuthKey::expose);
        #[cfg(feature = "tls")]
        let (certificates, tls_key) = builder.security.tls.as_ref().map(super::ServerTls::pem).unzip();
        #[cfg(not(feature = "tls"))]
        let tls_key = None;
        let (fd, secrets) = match (key, tls_key) {
            (None, None) => (None, None),
            (key, tls_key) => secrets::channel([key, tls_key]).map(|(fd, secrets)| (Some(fd), Some(secrets)))?,
        };
        let setup = Setup {
            bind: Bind::of(&builder.bind),
            secrets: fd,
            #[cfg(feature = "tls")]
            certificates: certificates.map(<[u8]>::to_vec),
            max_message: builder.max_message,
            max_connections: builder.max_connections as u64,
            max_requests_per_second: builder.max_requests_per_second,
            transit: builder.transit,
        };
        Ok((setup, secrets))
    }
}

#[derive(Serialize, Deserialize)]
enum Bind {
    Private,
    PrivateFile,
    Unix(PathBuf),
    Tcp { host: String, port: u16, tls: bool },
}

impl Bind {
    fn of(bind: &BindTo) -> Self {
        match bind {
            BindTo::Private => Bind::Private,
            BindTo::PrivateFile => Bind::PrivateFile,
            BindTo::Unix(path) => Bind::Unix(path.clone()),
            BindTo::Tcp { host, port, tls } => Bind::Tcp { host: host.clone(), port: *port, tls: *tls },
        }
    }
}

/// The task that starts the server in a worker which has nothing else to do. It ends with the worker.
///
/// Written by hand, because this crate forbids what the registration of `#[task]` needs; `task.rs` knows it.
#[derive(Serialize, Deserialize)]
pub(crate) struct ServeHere {
    setup: Setup,
}

impl Task for ServeHere {
    type Output = Result<Address, String>;
    const NAME: &'static str = "polypool::manager";

    fn run(self) -> Run<Self::Output> {
        Run::Ready(serve_here(self.setup))
    }
}

fn serve_here(setup: Setup) -> Result<Address, String> {
    static SERVERS: Mutex<Vec<Arc<Server>>> = Mutex::new(Vec::new());
    let bind = match setup.bind {
        Bind::Private => BindTo::Private,
        Bind::PrivateFile => BindTo::PrivateFile,
        Bind::Unix(path) => BindTo::Unix(path),
        Bind::Tcp { host, port, tls } => BindTo::Tcp { host, port, tls },
    };
    let mut builder = Manager::builder()
        .bind(bind)
        .max_message(setup.max_message)
        .max_connections(usize::try_from(setup.max_connections).unwrap_or(usize::MAX))
        .transit(setup.transit);
    builder.max_requests_per_second = setup.max_requests_per_second;
    let [key, tls_key] = match setup.secrets {
        Some(fd) => secrets::receive(fd).map_err(|error| format!("the keys did not come: {error}"))?,
        None => [None, None],
    };
    if let Some(mut key) = key {
        // Not a copy: the key wipes these bytes.
        builder = builder.auth_key(AuthKey::new(std::mem::take(&mut *key)).map_err(|error| error.to_string())?);
    }
    #[cfg(feature = "tls")]
    if let (Some(certificates), Some(key)) = (setup.certificates, &tls_key) {
        builder = builder.tls(super::ServerTls::from_pem(&certificates, key).map_err(|error| error.to_string())?);
    }
    drop(tls_key);
    let server =
        Server::start(&builder.bind, &builder.security, builder.settings()).map_err(|error| error.to_string())?;
    let address = server.address();
    SERVERS.lock().push(server);
    Ok(address)
}

/// A manager, as it is used in any process: makes objects, names them and finds them.
///
/// It travels as data, as all proxies do.
#[derive(Clone)]
#[must_use = "a proxy does nothing by itself"]
pub struct ManagerProxy {
    remote: Remote,
    name: Option<Arc<str>>,
}

impl ManagerProxy {
    fn new(remote: Remote) -> Self {
        ManagerProxy { remote, name: None }
    }

    /// The same manager, whose objects have a name: what is made by the result is found by the name if it is there, and
    /// made under it if it is not, in one step. So several processes can begin with the same line.
    ///
    /// ```
    /// # polypool::worker_hook!();
    /// use polypool::manager::Manager;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let manager = Manager::in_thread()?;
    /// let totals = manager.named("totals").dict::<String, u64>().wait()?;
    /// totals.insert(&"a".to_owned(), &1).wait()?;
    /// let same = manager.named("totals").dict::<String, u64>().wait()?;
    /// assert_eq!(same.get(&"a".to_owned()).wait()?, Some(1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn named(&self, name: &str) -> ManagerProxy {
        ManagerProxy { remote: self.remote.clone(), name: Some(name.into()) }
    }

    fn make<P: Proxy>(&self, kind: &str, constructor: u64, arguments: Result<Request, ManagerError>) -> Call<P> {
        let request = arguments.map(|arguments| {
            let mut request = Request::new();
            request.bytes().push(u8::from(self.name.is_some()));
            if let Some(name) = &self.name {
                request = request.sized(name.as_bytes());
            }
            request
                .sized(kind.as_bytes())
                .sized(P::schema().as_bytes())
                .number(constructor)
                .sized(arguments.arguments())
        });
        self.finding(root::CREATE, request, P::schema())
    }

    fn finding<P: Proxy>(&self, method: u32, request: Result<Request, ManagerError>, schema: String) -> Call<P> {
        let call = self.remote.request(method, request, |result, core| {
            let object = number(result)?;
            let name = std::str::from_utf8(&result[8..]).ok().filter(|name| !name.is_empty()).map(Arc::from);
            Ok(P::from_remote(Remote::attached(core, P::schema(), object, name)))
        });
        // The object is attached already when the result comes.
        call.expecting(schema).undo(Undo::Root(root::RELEASE))
    }

    fn builtin<P: Proxy>(&self, kind: &str, arguments: Request) -> Call<P> {
        self.make(kind, 0, Ok(arguments))
    }

    /// Makes an empty dict.
    pub fn dict<K: Data, V: Data>(&self) -> Call<DictProxy<K, V>> {
        self.builtin("dict", Request::new())
    }

    /// Makes an empty list.
    pub fn list<T: Data>(&self) -> Call<ListProxy<T>> {
        self.builtin("list", Request::new())
    }

    /// Makes an empty set.
    pub fn set<T: Data>(&self) -> Call<SetProxy<T>> {
        self.builtin("set", Request::new())
    }

    /// Makes a namespace without attributes.
    pub fn namespace(&self) -> Call<NamespaceProxy> {
        self.builtin("namespace", Request::new())
    }

    /// Makes a place for a value.
    pub fn value<T: Data>(&self, value: &T) -> Call<ValueProxy<T>> {
        self.make("value", 0, builtin::initial(value).map(|value| Request::new().rest(&value)))
    }

    /// Makes a queue for any number of items.
    pub fn queue<T: Data>(&self) -> Call<QueueProxy<T>> {
        self.builtin("queue", Request::new().number(0))
    }

    /// Makes a queue for so many items. 0, as in Python, stands for any number.
    pub fn bounded_queue<T: Data>(&self, capacity: u64) -> Call<QueueProxy<T>> {
        self.builtin("queue", Request::new().number(capacity))
    }

    /// Makes a lock.
    pub fn lock(&self) -> Call<LockProxy> {
        self.builtin("lock", Request::new())
    }

    /// Makes a re-entrant lock.
    pub fn rlock(&self) -> Call<RLockProxy> {
        self.builtin("rlock", Request::new())
    }

    /// Makes a condition, with its lock.
    pub fn condition(&self) -> Call<ConditionProxy> {
        self.builtin("condition", Request::new())
    }

    /// Makes an event that is not set.
    pub fn event(&self) -> Call<EventProxy> {
        self.builtin("event", Request::new())
    }

    /// Makes a semaphore with so many permits, to which more can be added.
    pub fn semaphore(&self, permits: u64) -> Call<SemaphoreProxy> {
        let mut request = Request::new().number(permits);
        request.bytes().push(0);
        self.builtin("semaphore", request)
    }

    /// Makes a semaphore that never has more than so many permits.
    pub fn bounded_semaphore(&self, permits: u64) -> Call<SemaphoreProxy> {
        let mut request = Request::new().number(permits);
        request.bytes().push(1);
        self.builtin("semaphore", request)
    }

    /// Makes a barrier for so many parties, at least 1.
    pub fn barrier(&self, parties: u64) -> Call<BarrierProxy> {
        self.builtin("barrier", Request::new().number(parties))
    }

    /// Puts a copy of a value of one's own type into the manager; see [`#[managed]`](macro@crate::managed).
    ///
    /// # Errors
    /// [`ManagerError::UnknownType`] or [`ManagerError::SchemaMismatch`] if the server is another program, which has no
    /// such type.
    pub fn create<T: Managed + Data>(&self, value: &T) -> Call<T::Proxy> {
        self.make(&format!("{TYPE_PREFIX}{}", T::NAME), BY_VALUE, Request::new().last(value))
    }

    /// What constructors on proxies call.
    #[doc(hidden)]
    pub fn construct<T: Managed, A: Serialize>(&self, constructor: u32, arguments: &A) -> Call<T::Proxy> {
        let arguments = Request::new().last(arguments);
        self.make(&format!("{TYPE_PREFIX}{}", T::NAME), u64::from(constructor), arguments)
    }

    /// What `create` on the proxy of a trait calls.
    #[doc(hidden)]
    pub fn create_as<T: Implements<P> + Data, P: Proxy>(&self, value: &T) -> Call<P> {
        self.make(&format!("{TYPE_PREFIX}{}", T::NAME), BY_VALUE, Request::new().last(value))
    }

    /// What constructors on the proxy of a trait call.
    #[doc(hidden)]
    pub fn construct_as<T: Implements<P>, P: Proxy, A: Serialize>(&self, constructor: u32, arguments: &A) -> Call<P> {
        let arguments = Request::new().last(arguments);
        self.make(&format!("{TYPE_PREFIX}{}", T::NAME), u64::from(constructor), arguments)
    }

    /// Finds an object by its name.
    ///
    /// # Errors
    /// [`ManagerError::UnknownName`], and [`ManagerError::SchemaMismatch`] if it is of another type.
    pub fn get<P: Proxy>(&self, name: &str) -> Call<P> {
        let schema = P::schema();
        let request = Request::new().sized(name.as_bytes()).sized(schema.as_bytes());
        self.finding(root::LOOKUP, Ok(request), schema)
    }

    fn about<P: Proxy>(&self, method: u32, proxy: &P, request: impl FnOnce(Request) -> Request) -> Call<()> {
        let mut fits = proxy.remote().0.check_origin();
        if proxy.address() != &self.remote.0.address {
            fits = Err(ManagerError::InvalidOption("the proxy is of an object of another manager"));
        }
        if let Err(error) = fits {
            return self.remote.request(method, Err(error), |_, _| Ok(()));
        }
        let (generation, object) = proxy.remote().0.identity();
        let start = Request::new().number(generation).number(object);
        self.remote.request(method, Ok(request(start)), |_, _| Ok(()))
    }

    /// Gives an object a name, under which any process [finds](Self::get) it, and which keeps it until
    /// [`unpublish`](Self::unpublish) or the end of the manager. An object may have several.
    ///
    /// # Errors
    /// [`ManagerError::NameTaken`].
    pub fn publish<P: Proxy>(&self, name: &str, proxy: &P) -> Call<()> {
        proxy.remote().set_name(name);
        self.about(root::PUBLISH, proxy, |request| request.sized(name.as_bytes()))
    }

    /// Takes a name back. The object goes on for as long as somebody refers to it.
    ///
    /// # Errors
    /// [`ManagerError::UnknownName`].
    pub fn unpublish(&self, name: &str) -> Call<()> {
        self.remote.request(root::UNPUBLISH, Ok(Request::new().sized(name.as_bytes())), |_, _| Ok(()))
    }

    /// All names.
    pub fn names(&self) -> Call<Vec<String>> {
        self.remote.request(root::NAMES, Ok(Request::new()), |result, _| super::wire::decode_result(result))
    }

    /// Ends an object, whoever refers to it. Calls of it fail with [`ManagerError::ObjectGone`] from now on, also those
    /// that wait.
    pub fn remove<P: Proxy>(&self, proxy: &P) -> Call<()> {
        self.about(root::REMOVE, proxy, |request| request)
    }

    /// What the server is doing.
    pub fn stats(&self) -> Call<ManagerStats> {
        self.remote.request(root::STATS, Ok(Request::new()), |result, _| {
            let mut fields = Fields(result);
            let mut next = || fields.number().map_err(|failure| failure.explain("manager"));
            let (objects, names, connections, failed_handshakes) = (next()?, next()?, next()?, next()?);
            Ok(ManagerStats { objects, names, connections, failed_handshakes })
        })
    }

    /// Whether the server is there.
    pub fn ping(&self) -> Call<()> {
        self.remote.request(root::PING, Ok(Request::new()), |_, _| Ok(()))
    }
}

impl Proxy for ManagerProxy {
    fn schema() -> String {
        "manager".to_owned()
    }

    fn from_remote(remote: Remote) -> Self {
        ManagerProxy::new(remote)
    }

    fn remote(&self) -> &Remote {
        &self.remote
    }
}

impl fmt::Debug for ManagerProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ManagerProxy");
        shown.field("address", &format_args!("{}", self.remote.0.address));
        if let Some(name) = &self.name {
            shown.field("name", name);
        }
        shown.finish_non_exhaustive()
    }
}

impl Serialize for ManagerProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.remote.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ManagerProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let remote = Remote::deserialize(deserializer, Self::schema())?;
        if remote.0.identity().1 != super::wire::ROOT {
            return Err(serde::de::Error::custom("the proxy is one of an object, not of its manager"));
        }
        Ok(ManagerProxy::new(remote))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_no_message_to_the_process_of_the_server() {
        #[cfg_attr(not(feature = "tls"), allow(unused_mut))]
        let mut wanted = vec![(0..32).map(|at| at * 7 + 1).collect::<Vec<u8>>()];
        let builder = Manager::builder().auth_key(AuthKey::new(wanted[0].clone()).unwrap());
        #[cfg(feature = "tls")]
        let builder = {
            wanted.push(include_bytes!("../../tests/certificates/one.key").to_vec());
            let tls = super::super::ServerTls::from_pem(include_bytes!("../../tests/certificates/one.pem"), &wanted[1]);
            builder.tls(tls.unwrap())
        };
        let (setup, secrets) = Setup::of(&builder).unwrap();
        let (bytes, luggage) = polypool_ipc::pack(|| rmp_serde::to_vec(&setup).unwrap());
        for secret in &wanted {
            // Not even a piece of it, or of its text.
            let piece = &secret[secret.len() / 2..][..16];
            assert!(!bytes.windows(piece.len()).any(|window| window == piece));
        }
        secrets.unwrap().send().unwrap();
        let setup: Setup = polypool_ipc::unpack(&luggage, || rmp_serde::from_slice(&bytes).unwrap());
        let got: [_; 2] = secrets::receive(setup.secrets.unwrap()).unwrap();
        let got: Vec<_> = got.into_iter().flatten().map(|secret| secret.to_vec()).collect();
        assert_eq!(got, wanted);

        let (setup, secrets) = Setup::of(&Manager::builder()).unwrap();
        assert!(setup.secrets.is_none() && secrets.is_none(), "without a key nothing is needed");
    }

    #[test]
    fn a_forked_child_leaves_the_server_to_its_parent() {
        let manager = Manager::in_thread().unwrap();
        let Place::Here(server) = &manager.place else { panic!("it is here") };
        // The thread of the connection is an owner as well.
        manager.ping().wait().unwrap();
        let owners = Arc::strong_count(server);
        let copy = Manager {
            proxy: ManagerProxy::new(manager.remote.inherited()),
            address: manager.address.clone(),
            place: Place::Here(server.clone()),
        };
        assert_eq!(copy.pid(), None);
        copy.shutdown();
        drop(copy);
        manager.ping().wait().unwrap();
        assert_eq!(Arc::strong_count(server), owners + 1, "not dropped: that would close the parent's sockets");
    }
}
