//! Virtual time and seeded randomness: the one place in the tests that stands in for the operating system.
//!
//! boringtun and std read the clock through libc's `clock_gettime`, and `words::key` (and std's hash maps) draw randomness
//! through libc's `getrandom`. A test binary that defines these two symbols is asked instead of libc. On a thread that
//! has started a [`Clock`] they answer with that thread's virtual time and with a seeded generator; on every other thread
//! they ask the kernel. Ephemeral keys inside boringtun come by another way (the system call itself) and stay random:
//! "the same run" is the same log of times, senders and kinds, not the same bytes.

use std::{
    cell::Cell,
    ffi::{c_int, c_long, c_uint, c_void},
    time::{Duration, Instant, SystemTime},
};

use clusternet::words::time::{Now, Timestamp};

/// 2026-01-01T00:00:00Z: when every simulation begins, for its wall clock.
pub const WALL_START: Duration = Duration::from_secs(1_767_225_600);
/// How long the simulated machine has been up at the start: durations reach back before it.
const UP_AT_START: Duration = Duration::from_secs(1_000_000);

thread_local! {
    static TIME: Cell<Option<Virtual>> = const { Cell::new(None) };
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Virtual {
    /// Nanoseconds since the simulation began.
    elapsed: u64,
    /// The wall clock's error in nanoseconds.
    wall_error: i64,
}

/// This thread's virtual clock; the real one is back when it is dropped.
pub struct Clock(());

impl Clock {
    /// Starts virtual time on this thread, and randomness from `seed`.
    ///
    /// # Panics
    /// If it runs already.
    pub fn start(seed: u64) -> Self {
        assert!(TIME.get().is_none(), "one clock per thread");
        TIME.set(Some(Virtual { elapsed: 0, wall_error: 0 }));
        RANDOM.set(Some(seed));
        Self(())
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.advance_to(self.elapsed() + by);
    }

    /// Lets time pass until `elapsed` since the start.
    ///
    /// # Panics
    /// If that is in the past.
    pub fn advance_to(&self, elapsed: Duration) {
        let elapsed = u64::try_from(elapsed.as_nanos()).expect("within 584 years");
        let time = TIME.get().expect("started");
        assert!(elapsed >= time.elapsed, "time does not go back");
        TIME.set(Some(Virtual { elapsed, ..time }));
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(TIME.get().expect("started").elapsed)
    }

    /// Makes the wall clock wrong by so many milliseconds from now on; 0 is right.
    pub fn set_wall_error(&self, milliseconds: i64) {
        let time = TIME.get().expect("started");
        TIME.set(Some(Virtual { wall_error: milliseconds * 1_000_000, ..time }));
    }

    /// Both clocks, as every `handle_*` wants them.
    #[expect(clippy::disallowed_methods, reason = "these calls read the virtual clock")]
    pub fn now(&self) -> Now {
        Now { instant: Instant::now(), wall: Timestamp::from_system(SystemTime::now()) }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        TIME.set(None);
        RANDOM.set(None);
    }
}

/// SplitMix64: small, seedable, good enough to decide which datagram is lost.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.next_u64() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }
}

/// Stands in for libc's function of this name, for std and for boringtun.
///
/// # Safety
/// `out` points to a `timespec`, as libc requires.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> c_int {
    let since = TIME.try_with(Cell::get).ok().flatten().and_then(|time| match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => {
            Some(UP_AT_START + Duration::from_nanos(time.elapsed))
        }
        libc::CLOCK_REALTIME => {
            let right = WALL_START + Duration::from_nanos(time.elapsed);
            let error = Duration::from_nanos(time.wall_error.unsigned_abs());
            Some(if time.wall_error < 0 { right - error } else { right + error })
        }
        _ => None,
    });
    let Some(since) = since else {
        // SAFETY: the caller's promise about `out` is the kernel's demand.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) } as c_int;
    };
    let time = libc::timespec {
        tv_sec: since.as_secs() as libc::time_t,
        tv_nsec: c_long::from(since.subsec_nanos()),
    };
    // SAFETY: `out` points to a `timespec` by the caller's promise.
    unsafe { out.write(time) };
    0
}

/// Stands in for libc's function of this name, for `words::key` and for std's hash maps.
///
/// # Safety
/// `out` points to `len` bytes, as libc requires.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(out: *mut c_void, len: usize, flags: c_uint) -> isize {
    let Some(mut state) = RANDOM.try_with(Cell::get).ok().flatten().map(Rng::new) else {
        // SAFETY: the caller's promise about `out` and `len` is the kernel's demand.
        return unsafe { libc::syscall(libc::SYS_getrandom, out, len, flags) } as isize;
    };
    if len > 0 {
        // SAFETY: `out` points to `len` bytes by the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), len) };
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&state.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
    RANDOM.set(Some(state.0));
    len as isize
}
