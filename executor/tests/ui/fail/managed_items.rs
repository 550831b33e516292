struct Counter(u64);

#[polypool::managed]
struct Other(u64);

#[polypool::managed]
fn count() {}

#[polypool::managed]
impl Clone for Counter {
    fn clone(&self) -> Self {
        Counter(self.0)
    }
}

#[polypool::managed]
impl Counter {
    fn private(&self) -> u64 {
        self.0
    }
}

struct Generic<T>(T);

#[polypool::managed]
impl<T> Generic<T> {
    pub fn get(&self) -> u64 {
        0
    }
}

#[polypool::managed(nam = "x", proxy = "CounterProxy")]
impl Counter {
    pub fn value(&self) -> u64 {
        self.0
    }
}

fn main() {}
