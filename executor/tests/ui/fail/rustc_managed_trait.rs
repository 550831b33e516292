#[polypool::managed]
trait Count {
    fn count(&self) -> u64;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Counter(u64);

impl Count for Counter {
    fn count(&self) -> u64 {
        self.0
    }
}

fn main() {
    let manager = polypool::manager::Manager::in_thread().unwrap();
    let _ = CountProxy::create(&manager, &Counter(1));
}
