//! The figures as tables, in the documents of both languages.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use super::figures::{Figures, PAIRS, Pair, SUBJECTS, Sample, median};

/// The languages of the documents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    English,
    Chinese,
}

/// The ends of the names of a document in both languages.
const LANGUAGES: [(&str, Language); 2] =
    [(".md", Language::English), (".zh-CN.md", Language::Chinese)];
/// What stands between these marks is written by this program.
const BEGIN: &str = "<!-- figures -->\n";
const END: &str = "<!-- /figures -->";

/// Writes figures into a document of both languages.
pub(super) fn write(root: &Path, document: &str, text: impl Fn(Language) -> String) -> Result<()> {
    for (end, language) in LANGUAGES {
        let name = format!("{document}{end}");
        let path = root.join(&name);
        let old = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
        let new = replaced(&old, &text(language))
            .with_context(|| format!("{name} does not have the marks `{BEGIN}` and `{END}`"))?;
        fs::write(&path, new)?;
        println!("{name}: written");
    }
    Ok(())
}

/// The document with other figures between its marks.
fn replaced(old: &str, figures: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{figures}\n{END}{after}"))
}

/// All tables.
pub(super) fn text(figures: &Figures, language: Language) -> String {
    let parts = [
        machine(figures, language),
        targets(figures, language),
        ratios(figures, language),
        samples(figures, language),
        others(figures, language),
    ];
    parts.join("\n")
}

impl Language {
    /// What stands for it in this language.
    pub(super) fn pick(self, english: &'static str, chinese: &'static str) -> &'static str {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

/// Rows of a table, each with a line of its own.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut text = line(&heads);
    text.push_str(&format!("|{}\n", "---|".repeat(heads.len())));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

fn machine(figures: &Figures, language: Language) -> String {
    let machine = &figures.machine;
    let cores = [machine.used.server, machine.used.client];
    let foreign = figures.samples.iter().flatten().flatten().map(|sample| sample.foreign);
    let pick = |english, chinese| language.pick(english, chinese).to_owned();
    let rows = [
        vec![pick("date", "日期"), machine.date.clone()],
        vec![pick("command", "命令"), format!("`{}`", figures.command)],
        vec![
            pick("machine", "机器"),
            format!(
                "{}, {} × CPU, {:.1} GB, {}",
                machine.cpu, machine.cores, machine.memory, machine.kernel
            ),
        ],
        vec![pick("programs", "程序"), machine.versions.clone()],
        vec![
            pick("cores used (server, clients)", "所用核心（服务器、客户端）"),
            format!("{}, {}", cores[0], cores[1]),
        ],
        vec![
            pick("rounds × seconds", "轮数 × 秒数"),
            format!("{} × {}", figures.rounds, figures.seconds),
        ],
        vec![
            pick("cores that others used meanwhile, median", "期间被其他进程占用的核心数，中位数"),
            format!("{:.2}", median(foreign)),
        ],
    ];
    format!(
        "## {}\n\n{}",
        language.pick("Machine", "机器"),
        table(&[language.pick("what", "项目"), language.pick("value", "值")], &rows)
    )
}

/// A figure beside its target.
struct Row {
    what: String,
    reference: String,
    target: String,
    measured: String,
    /// Measured over target; above 1 it is missed.
    over: f64,
}

fn targets(figures: &Figures, language: Language) -> String {
    let rows: Vec<Vec<String>> = target_rows(figures, language)
        .into_iter()
        .map(|row| {
            let met = if row.over <= 1.0 {
                language.pick("yes", "达到").to_owned()
            } else {
                let (english, chinese) = ("no", "未达到");
                format!("{}, {:.2} ×", language.pick(english, chinese), row.over)
            };
            vec![row.what, row.reference, row.target, row.measured, met]
        })
        .collect();
    let heads = match language {
        Language::English => ["what", "reference", "target", "measured", "met"],
        Language::Chinese => ["项目", "参照", "目标", "实测", "是否达到"],
    };
    format!("## {}\n\n{}", language.pick("Targets", "目标"), table(&heads, &rows))
}

fn target_rows(figures: &Figures, language: Language) -> Vec<Row> {
    let pick = |english, chinese| language.pick(english, chinese);
    let (cpu, p99) = (pick("CPU a request", "每请求 CPU"), pick("p99", "p99"));
    let deciding = figures.deciding();
    let mut rows = Vec::new();
    for pair in &PAIRS {
        let name = |at: usize| SUBJECTS[at].of(language).to_owned();
        let mut push = |what: &str, target: f64, measured: f64| {
            rows.push(Row {
                what: format!("{}: {what}", name(pair.ours)),
                reference: name(pair.reference),
                target: format!("≤ {target:.2} ×"),
                measured: format!("{measured:.2} ×"),
                over: measured / target,
            });
        };
        push(cpu, pair.cpu, figures.ratio(deciding, pair, |sample| sample.cpu));
        if let Some(target) = pair.p99 {
            push(p99, target, figures.ratio(deciding, pair, |sample| sample.p99));
        }
    }
    let (herd, idle) = (&figures.herd, &figures.idle);
    let mut push = |what: String, target: &str, measured: String, over: f64| {
        let (reference, target) = ("–".to_owned(), target.to_owned());
        rows.push(Row { what, reference, target, measured, over });
    };
    let readers = |what: &str| {
        format!("{} {}: {what}", herd.readers, pick("readers at expiry", "个读者同时等待"))
    };
    push(
        readers(pick("upstream calls", "上游调用次数")),
        "1",
        herd.calls.to_string(),
        herd.calls as f64,
    );
    push(
        readers(pick("the last one is awake", "最后一个被唤醒")),
        "≤ 10 ms",
        format!("{:.1} ms", herd.awake),
        herd.awake / 10.0,
    );
    let apps = |what: &str| format!("{} {}: {what}", idle.apps, pick("idle apps", "个空闲应用"));
    push(
        apps(pick("resident each", "每个常驻内存")),
        "≤ 1.5 kB",
        format!("{:.2} kB", idle.bytes / 1e3),
        idle.bytes / 1.5e3,
    );
    push(
        apps(pick("of a core", "占用核心")),
        "≤ 1 %",
        format!("{:.2} %", idle.core * 100.0),
        idle.core / 0.01,
    );
    push(apps(pick("start", "启动")), "≤ 3 s", format!("{:.2} s", idle.start), idle.start / 3.0);
    rows
}

fn ratios(figures: &Figures, language: Language) -> String {
    let mut rows = Vec::new();
    for (at, setting) in figures.settings.iter().enumerate() {
        for pair in &PAIRS {
            let ratio = |of: fn(&Sample) -> f64| format!("{:.2}", figures.ratio(at, pair, of));
            let Pair { ours, reference, .. } = pair;
            rows.push(vec![
                setting.words(language),
                SUBJECTS[*ours].of(language).to_owned(),
                SUBJECTS[*reference].of(language).to_owned(),
                ratio(|sample| sample.cpu),
                ratio(|sample| sample.rate),
                ratio(|sample| sample.p50),
                ratio(|sample| sample.p99),
            ]);
        }
    }
    let heads = match language {
        Language::English => ["setting", "what", "reference", "CPU", "req/s", "p50", "p99"],
        Language::Chinese => ["设置", "项目", "参照", "CPU", "请求/秒", "p50", "p99"],
    };
    format!("## {}\n\n{}", language.pick("Ratios", "比值"), table(&heads, &rows))
}

fn samples(figures: &Figures, language: Language) -> String {
    let mut rows = Vec::new();
    for (setting, of_setting) in figures.settings.iter().zip(&figures.samples) {
        for (name, taken) in SUBJECTS.iter().zip(of_setting) {
            let of = |value: fn(&Sample) -> f64| median(taken.iter().map(value));
            rows.push(vec![
                setting.words(language),
                name.of(language).to_owned(),
                format!("{:.0}", of(|sample| sample.rate)),
                format!("{:.2}", of(|sample| sample.cpu)),
                format!("{:.0}", of(|sample| sample.p50)),
                format!("{:.0}", of(|sample| sample.p99)),
                format!("{:.2}", of(|sample| sample.foreign)),
            ]);
        }
    }
    let heads = match language {
        Language::English => {
            ["setting", "what", "req/s", "CPU a request, µs", "p50, µs", "p99, µs", "foreign cores"]
        }
        Language::Chinese => {
            ["设置", "项目", "请求/秒", "每请求 CPU，µs", "p50，µs", "p99，µs", "外来占用核心数"]
        }
    };
    format!("## {}\n\n{}", language.pick("All medians", "全部中位数"), table(&heads, &rows))
}

fn others(figures: &Figures, language: Language) -> String {
    let pick = |english, chinese| language.pick(english, chinese).to_owned();
    let (herd, idle) = (&figures.herd, &figures.idle);
    let heads = [language.pick("what", "项目"), language.pick("value", "值")];
    let mut text = String::new();
    let mut part = |heading: String, rows: &[(String, String)]| {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|(what, value)| vec![what.clone(), value.clone()]).collect();
        let separator = if text.is_empty() { "" } else { "\n" };
        write!(text, "{separator}## {heading}\n\n{}", table(&heads, &rows))
            .expect("a string takes any text");
    };
    part(
        pick("Readers at expiry", "token 到期时的读者"),
        &[
            (pick("readers", "读者"), herd.readers.to_string()),
            (pick("upstream calls", "上游调用次数"), herd.calls.to_string()),
            (
                pick(
                    "as tasks in one process: the last one is awake",
                    "作为同一进程内的任务：最后一个被唤醒",
                ),
                format!("{:.1} ms", herd.awake),
            ),
            (pick("first answer", "第一个应答"), format!("{:.1} ms", herd.first)),
            (pick("half of the answers", "半数应答"), format!("{:.1} ms", herd.half)),
            (pick("last answer on the wire", "线路上最后一个应答"), format!("{:.1} ms", herd.last)),
            (pick("CPU an answer", "每个应答的 CPU"), format!("{:.2} µs", herd.cpu)),
            (
                pick(
                    "all ask again for the token that is there, first question to last answer",
                    "全部再次读取已有的 token：从第一个请求到最后一个应答",
                ),
                format!("{:.1} ms", herd.again),
            ),
        ],
    );
    part(
        pick("Idle apps", "空闲应用"),
        &[
            (pick("apps", "应用"), idle.apps.to_string()),
            (pick("resident each", "每个常驻内存"), format!("{:.0} B", idle.bytes)),
            (pick("of a core", "占用核心"), format!("{:.2} %", idle.core * 100.0)),
            (pick("start", "启动"), format!("{:.2} s", idle.start)),
            (pick("start without apps", "无应用时启动"), format!("{:.2} s", idle.start_empty)),
            (
                pick("first fetch of all tokens", "首次获取全部 token"),
                format!("{:.0} s", idle.fetched),
            ),
        ],
    );
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let [nginx, redis, xinfu] = figures.memory.map(megabytes);
    part(
        pick("Resident memory after the load", "负载之后的常驻内存"),
        &[("nginx".to_owned(), nginx), ("Redis".to_owned(), redis), ("xinfu".to_owned(), xinfu)],
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let old = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let new = replaced(&old, "new\n").expect("it has the marks");
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n\n{END}\nafter\n"));
        assert_eq!(replaced("no marks", "new"), None);
    }

    #[test]
    fn tables_are_tables() {
        let rows = [vec!["1".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["a", "b"], &rows), "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }
}
