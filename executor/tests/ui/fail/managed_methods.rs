struct Counter(u64);

#[polypool::managed]
impl Counter {
    pub fn named(name: &str) -> Self {
        Counter(name.len() as u64)
    }

    pub fn into_inner(self) -> u64 {
        self.0
    }

    pub async fn later(&self) -> u64 {
        self.0
    }

    pub fn rename(&mut self, name: &str) {
        self.0 = name.len() as u64;
    }

    pub fn inner(&self) -> &u64 {
        &self.0
    }

    pub fn any<T>(&self, of: T) -> T {
        of
    }

    pub fn same(&self, other: Self) -> bool {
        self.0 == other.0
    }

    pub fn pair(&self, (a, b): (u64, u64)) -> u64 {
        a + b
    }

    #[managed(hide)]
    pub fn hidden(&self) {}
}

fn main() {}
