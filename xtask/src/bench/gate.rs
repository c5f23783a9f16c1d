//! A stand-in for WeChat that counts how often it is asked for a token, and answers when it is told.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{place::TOKEN_ANSWER, process::PATIENCE};
use crate::command::Stopwatch;

/// The stand-in.
pub(super) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    since: Stopwatch,
}

#[derive(Default)]
struct State {
    open: bool,
    calls: usize,
    /// When the last answer was about to be sent.
    answered: Option<Duration>,
}

impl Gate {
    /// Starts one that answers at once, or not before [`Gate::open`].
    pub(super) fn start(open: bool) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Mutex::new(State { open, ..State::default() });
        let shared = Shared { state, changed: Condvar::new(), since: Stopwatch::start() };
        let shared = Arc::new(shared);
        let gate = Self { address, shared: Arc::clone(&shared) };
        // It goes on until this program ends, which it does soon.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // Whoever hangs up has had what it wanted.
                thread::spawn(move || answer(stream, &shared).ok());
            }
        });
        Ok(gate)
    }

    /// Its base URL.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often a token was asked for.
    pub(super) fn calls(&self) -> usize {
        self.shared.state().calls
    }

    /// Waits for so many calls.
    pub(super) fn until_called(&self, calls: usize) -> Result<()> {
        let state = self.shared.state();
        let waited =
            self.shared.changed.wait_timeout_while(state, PATIENCE, |state| state.calls < calls);
        let (state, waited) = waited.expect("nothing panics while it holds this lock");
        let calls = state.calls;
        drop(state);
        if waited.timed_out() {
            Err(anyhow::anyhow!("the token was asked for {calls} times"))
        } else {
            Ok(())
        }
    }

    /// Lets all answers go.
    pub(super) fn open(&self) {
        self.shared.state().open = true;
        self.shared.changed.notify_all();
    }

    /// How long ago the last answer was sent.
    pub(super) fn since_answer(&self) -> Result<Duration> {
        let now = self.shared.since.elapsed();
        let answered = self.shared.state().answered.context("nothing was answered")?;
        Ok(now.saturating_sub(answered))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// Answers the requests of one connection.
fn answer(stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut line = String::new();
        let mut first = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let low = line.trim_end().to_ascii_lowercase();
            if let Some(value) = low.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if low.is_empty() {
                break;
            }
            if first.is_empty() {
                first = low;
            }
        }
        reader.read_exact(&mut vec![0; length])?;

        let mut state = shared.state();
        if first.contains("token") {
            state.calls += 1;
            shared.changed.notify_all();
        }
        let mut state = shared
            .changed
            .wait_while(state, |state| !state.open)
            .expect("nothing panics while it holds this lock");
        state.answered = Some(shared.since.elapsed());
        drop(state);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json";
        let body = TOKEN_ANSWER;
        let text = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        writer.write_all(text.as_bytes())?;
    }
}
