//! Counters and gauges.
//!
//! The `Local` kinds have one writer thread and add by load and store, which costs no bus lock; a scrape on another
//! thread reads a value that was current a moment ago. All orderings are relaxed: no metric guards other memory.

use std::array;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::label::Label;

/// A count that several threads raise.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that goes up and down, set as a whole by whoever owns what it measures.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A count that one thread raises; a second one would lose counts.
#[derive(Debug, Default)]
pub struct LocalCounter(AtomicU64);

impl LocalCounter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `count`.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that one thread moves up and down.
#[derive(Debug, Default)]
pub struct LocalGauge(AtomicU64);

impl LocalGauge {
    /// Sets the value.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.set(self.get().wrapping_add(1));
    }

    /// Takes one away; stays at 0.
    #[inline]
    pub fn dec(&self) {
        self.set(self.get().saturating_sub(1));
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One cell per value of a label; `N` is `L::COUNT`.
#[derive(Debug)]
pub struct Labelled<L, C, const N: usize> {
    cells: [C; N],
    label: PhantomData<fn(L)>,
}

impl<L: Label, C: Default, const N: usize> Default for Labelled<L, C, N> {
    fn default() -> Self {
        const { assert!(N == L::COUNT, "one cell per value of the label") };
        Self { cells: array::from_fn(|_| C::default()), label: PhantomData }
    }
}

impl<L: Label, C, const N: usize> Labelled<L, C, N> {
    /// Label values with their cells.
    pub fn iter(&self) -> impl Iterator<Item = (L, &C)> {
        L::ALL.iter().copied().zip(&self.cells)
    }
}

impl<L: Label, C, const N: usize> Index<L> for Labelled<L, C, N> {
    type Output = C;

    #[inline]
    fn index(&self, label: L) -> &C {
        &self.cells[label.index()]
    }
}
