//! What was measured, and what it is compared with.

use anyhow::Result;

use super::{
    herd::Herd, idle::Idle, load::Load, process::Daemon, report::Language, tools::Machine,
};

/// What something is called in both languages.
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) english: &'static str,
    pub(super) chinese: &'static str,
}

impl Name {
    /// It in one of them.
    pub(super) fn of(self, language: Language) -> &'static str {
        match language {
            Language::English => self.english,
            Language::Chinese => self.chinese,
        }
    }
}

/// A server with what is asked of it.
pub(super) struct Subject<'a> {
    pub(super) name: Name,
    pub(super) server: &'a Daemon,
    pub(super) load: &'a Load,
}

impl Subject<'_> {
    /// Asks once, and checks the answer.
    pub(super) fn check(&self) -> Result<()> {
        self.load.check()
    }
}

/// Names of the subjects, in their order.
pub(super) const SUBJECTS: [Name; 7] = [
    Name { english: "nginx, `return 200`", chinese: "nginx，`return 200`" },
    Name { english: "Redis, `GET`", chinese: "Redis，`GET`" },
    Name { english: "xinfu, token read", chinese: "xinfu，读取 token" },
    Name { english: "nginx, `proxy_pass`", chinese: "nginx，`proxy_pass`" },
    Name { english: "xinfu, compatible call", chinese: "xinfu，兼容调用" },
    Name {
        english: "nginx, `proxy_pass`, TLS upstream", chinese: "nginx，`proxy_pass`，上游 TLS"
    },
    Name {
        english: "xinfu, compatible call, TLS upstream", chinese: "xinfu，兼容调用，上游 TLS"
    },
];

/// Two subjects that are compared, by their place in [`SUBJECTS`], and how many times the
/// reference's figure is aimed at.
pub(super) struct Pair {
    pub(super) ours: usize,
    pub(super) reference: usize,
    pub(super) cpu: f64,
    pub(super) p99: Option<f64>,
}

/// All comparisons.
pub(super) const PAIRS: [Pair; 4] = [
    Pair { ours: 2, reference: 0, cpu: 1.05, p99: Some(1.5) },
    Pair { ours: 2, reference: 1, cpu: 0.85, p99: None },
    Pair { ours: 4, reference: 3, cpu: 1.10, p99: None },
    Pair { ours: 6, reference: 5, cpu: 1.05, p99: None },
];

/// On which cores and over how many connections.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    /// Server and clients have a core each.
    pub(super) apart: bool,
    pub(super) connections: usize,
}

impl Setting {
    /// It in words.
    pub(super) fn words(self, language: Language) -> String {
        let Self { apart, connections } = self;
        match (language, apart) {
            (Language::English, true) => format!("two cores, connections: {connections}"),
            (Language::English, false) => format!("one core, connections: {connections}"),
            (Language::Chinese, true) => format!("两个核心，连接数：{connections}"),
            (Language::Chinese, false) => format!("一个核心，连接数：{connections}"),
        }
    }
}

/// What one subject did in one round; times in microseconds.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    /// Requests a second.
    pub(super) rate: f64,
    /// Processor time of the server a request.
    pub(super) cpu: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// The cores that others used meanwhile.
    pub(super) foreign: f64,
}

/// Everything that was measured.
pub(super) struct Figures {
    pub(super) machine: Machine,
    pub(super) command: String,
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    pub(super) settings: Vec<Setting>,
    /// By setting, subject and round.
    pub(super) samples: Vec<Vec<Vec<Sample>>>,
    /// Resident bytes of nginx, Redis and xinfu after the load.
    pub(super) memory: [u64; 3],
    pub(super) herd: Herd,
    pub(super) idle: Idle,
}

impl Figures {
    /// The median of the ratios of a pair, round by round.
    pub(super) fn ratio(&self, setting: usize, pair: &Pair, of: fn(&Sample) -> f64) -> f64 {
        let (ours, theirs) =
            (&self.samples[setting][pair.ours], &self.samples[setting][pair.reference]);
        median(ours.iter().zip(theirs).map(|(ours, theirs)| of(ours) / of(theirs)))
    }

    /// The setting that decides: 64 connections, or what comes after it.
    pub(super) fn deciding(&self) -> usize {
        let found =
            self.settings.iter().position(|setting| setting.apart && setting.connections == 64);
        found.unwrap_or_default()
    }
}

/// The middle one of some values.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }

    #[test]
    fn what_is_compared_is_ours_with_another() {
        for pair in PAIRS {
            let [ours, theirs] = [pair.ours, pair.reference].map(|at| SUBJECTS[at].english);
            assert!(ours.starts_with("xinfu") && !theirs.starts_with("xinfu"), "{ours}, {theirs}");
        }
    }
}
