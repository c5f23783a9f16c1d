//! Rules for the documents.

use super::{Finding, TextFile, has_function};
use crate::planted;

/// Documents that must exist, and the most lines that some may have.
const REQUIRED: [(&str, Option<usize>); 7] = [
    (README, None),
    (README_CHINESE, None),
    ("ARCHITECTURE.md", Some(150)),
    ("CONTRIBUTING.md", Some(120)),
    ("SECURITY.md", None),
    ("CHANGELOG.md", None),
    (PROMISES, None),
];

const README: &str = "README.md";
/// Where the guides are.
const GUIDES: &str = "docs/guide/";
/// How the path of a document in Chinese ends.
const CHINESE: &str = ".zh-CN.md";
const README_CHINESE: &str = "README.zh-CN.md";
const PROMISES: &str = "docs/promises.md";

/// Applies all rules of this file.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, limit) in REQUIRED {
        let Some(file) = find(files, path) else {
            findings.push(Finding::new(path, 1, "is missing"));
            continue;
        };
        let lines = file.text.lines().count();
        if let Some(limit) = limit.filter(|limit| lines > *limit) {
            let message = format!("{lines} lines, the limit is {limit}");
            findings.push(Finding::new(path, limit + 1, message));
        }
    }
    findings.extend(files.iter().flat_map(|file| in_both_languages(file, files)));
    if let Some(promises) = find(files, PROMISES) {
        findings.extend(named_tests(promises, files));
        findings.extend(planted_bugs(promises, files));
    }
    findings.extend(files.iter().flat_map(|file| named_documents(file, files)));
    findings.extend(files.iter().flat_map(unfinished));
    findings
}

fn find<'a>(files: &'a [TextFile], path: &str) -> Option<&'a TextFile> {
    files.iter().find(|file| file.path == path)
}

/// A document in Chinese, or a guide, has a twin in the other language.
fn in_both_languages(file: &TextFile, files: &[TextFile]) -> Vec<Finding> {
    if let Some(name) = file.path.strip_suffix(CHINESE) {
        return match find(files, &format!("{name}.md")) {
            Some(english) => twins(english, file),
            None => vec![Finding::new(&file.path, 1, "has no English twin")],
        };
    }
    let guide = file.path.strip_prefix(GUIDES).and_then(|_| file.path.strip_suffix(".md"));
    match guide {
        Some(name) if find(files, &format!("{name}{CHINESE}")).is_none() => {
            vec![Finding::new(&file.path, 1, "has no Chinese twin")]
        }
        _ => Vec::new(),
    }
}

/// Two translations have the same headings, by level, and the same code, comments left out.
fn twins(english: &TextFile, chinese: &TextFile) -> Vec<Finding> {
    let (ours, theirs) = (Outline::of(&english.text), Outline::of(&chinese.text));
    let mut findings = Vec::new();
    for (what, ours, theirs) in
        [("heading", &ours.headings, &theirs.headings), ("code", &ours.code, &theirs.code)]
    {
        let same = ours.iter().zip(theirs).take_while(|(a, b)| a.1 == b.1).count();
        let (left, right) = (ours.get(same), theirs.get(same));
        if left.is_none() && right.is_none() {
            continue;
        }
        let show = |found: Option<&(usize, String)>| {
            found.map_or("nothing more".to_owned(), |(line, text)| format!("line {line} `{text}`"))
        };
        let line = right.or(theirs.last()).map_or(1, |(line, _)| *line);
        let message =
            format!("{what} differs: here {}, in {} {}", show(right), english.path, show(left));
        findings.push(Finding::new(&chinese.path, line, message));
    }
    findings
}

/// What two translations of one document have in common, each with its line.
#[derive(Default)]
struct Outline {
    /// The levels of the headings.
    headings: Vec<(usize, String)>,
    /// The lines inside code blocks without comments, and the fences between them.
    code: Vec<(usize, String)>,
}

impl Outline {
    fn of(text: &str) -> Self {
        let mut outline = Self::default();
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let trimmed = line.trim();
            if trimmed.starts_with("```") {
                in_code = !in_code;
                outline.code.push((number, trimmed.to_owned()));
            } else if in_code {
                let code = if trimmed.starts_with('#') { "" } else { trimmed };
                let code = code.split_once(" #").map_or(code, |(code, _)| code.trim_end());
                if !code.is_empty() {
                    outline.code.push((number, code.to_owned()));
                }
            } else if line.starts_with('#') {
                let level = line.chars().take_while(|char| *char == '#').collect();
                outline.headings.push((number, level));
            }
        }
        outline
    }
}

/// A test that the promises name by its path, as in `engine::one_fetch`, exists.
fn named_tests(promises: &TextFile, files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, name) in quoted(&promises.text) {
        let is_path = name.contains("::")
            && name.split("::").all(|part| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            });
        let function = name.rsplit("::").next().unwrap_or_default();
        if is_path && !has_function(files, function) {
            findings.push(Finding::new(&promises.path, line, format!("no test `{name}` exists")));
        }
    }
    findings
}

/// Each planted bug with its test and the promise it breaks stand in the promises, and the other way round.
fn planted_bugs(promises: &TextFile, files: &[TextFile]) -> Vec<Finding> {
    let quoted = quoted(&promises.text);
    let names = |name: &str| {
        quoted.iter().any(|(_, word)| {
            word.rsplit('/').next().unwrap_or(word).trim_end_matches(".patch") == name
        })
    };
    let mut findings = Vec::new();
    for file in files {
        let Some(name) = planted::name_of(&file.path) else { continue };
        if !names(name) {
            let message = format!("{} does not name this bug as `{name}`", promises.path);
            findings.push(Finding::new(&file.path, 1, message));
        }
        let test = file.text.lines().enumerate().find_map(|(index, line)| {
            let (key, test) = line.strip_prefix('#')?.split_once(':')?;
            (key.trim() == "test").then(|| (index + 1, test.trim()))
        });
        if let Some((line, test)) = test
            && !quoted.iter().any(|(_, word)| *word == test)
        {
            let message = format!("{} does not name its test as `{test}`", promises.path);
            findings.push(Finding::new(&file.path, line, message));
        }
    }
    for (line, word) in &quoted {
        let missing = planted::name_of(word).is_some() && find(files, word).is_none();
        if missing {
            findings.push(Finding::new(&promises.path, *line, format!("no `{word}` exists")));
        }
    }
    findings
}

/// No document has a place that somebody meant to fill in.
fn unfinished(file: &TextFile) -> Vec<Finding> {
    const MARK: &str = "(to be filled in)";
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let marked = file.text.lines().enumerate().filter(|(_, line)| line.contains(MARK));
    marked
        .map(|(index, _)| Finding::new(&file.path, index + 1, format!("`{MARK}` is not filled in")))
        .collect()
}

/// A document that a file names exists: by its path from the root, from the file, or by its name.
fn named_documents(file: &TextFile, files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if file.path.starts_with("xtask/") || file.path.starts_with("LICENSE") {
        return findings;
    }
    let is_part = |char: char| char.is_ascii_alphanumeric() || "_-./:".contains(char);
    for (index, line) in file.text.lines().enumerate() {
        for word in line.split(|char| !is_part(char)) {
            let word = word.trim_end_matches(['.', ':']);
            if !word.ends_with(".md") || word.starts_with('.') || word.contains(':') {
                continue;
            }
            let exists = files.iter().any(|other| {
                other.path == word
                    || other.path.strip_suffix(word).is_some_and(|rest| rest.ends_with('/'))
            });
            if !exists {
                let message = format!("there is no document `{word}`");
                findings.push(Finding::new(&file.path, index + 1, message));
            }
        }
    }
    findings
}

/// What stands between backticks on one line, with the number of the line.
fn quoted(text: &str) -> Vec<(usize, &str)> {
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(index, line)| {
            line.split('`').skip(1).step_by(2).map(move |word| (index + 1, word))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn missing_and_overlong_documents_are_found() {
        let files = [file("ARCHITECTURE.md", &"x\n".repeat(151))];
        let findings = check(&files);
        assert_eq!(findings.len(), REQUIRED.len());
        assert!(findings.iter().any(|finding| finding.line == 151));
    }

    #[test]
    fn guides_are_in_both_languages() {
        let (english, chinese) = ("docs/guide/x.md", "docs/guide/x.zh-CN.md");
        let findings = |files: &[TextFile]| {
            let all = files.iter().flat_map(|file| in_both_languages(file, files));
            all.map(|finding| (finding.path, finding.line)).collect::<Vec<_>>()
        };
        let (one, same) = (file(english, "# A\n"), file(chinese, "# 甲\n"));
        assert_eq!(findings(&[file(english, "# A\n"), same]), []);
        assert_eq!(findings(&[one]), [(english.to_owned(), 1)]);
        assert_eq!(findings(&[file(chinese, "# 甲\n")]), [(chinese.to_owned(), 1)]);
        let other = [file(english, "# A\n"), file(chinese, "## 甲\n")];
        assert_eq!(findings(&other), [(chinese.to_owned(), 1)]);
        assert_eq!(findings(&[file("docs/other.md", "# A\n")]), []);
    }

    #[test]
    fn translations_may_differ_in_words_and_comments_only() {
        let english = file(README, "# A\ntext\n## B\n```sh\n# one\nrun it  # now\n```\n");
        let chinese = file(README_CHINESE, "# 甲\n## 乙\n字\n```sh\n# 一\nrun it # 现在\n```\n");
        assert_eq!(twins(&english, &chinese), []);
        let other = file(README_CHINESE, "# 甲\n## 乙\n```sh\nrun that\n```\n### 丙\n");
        let lines: Vec<usize> =
            twins(&english, &other).into_iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [6, 4]);
        let shorter = file(README_CHINESE, "# 甲\n## 乙\n");
        assert_eq!(twins(&english, &shorter).len(), 1);
    }

    #[test]
    fn tests_named_by_the_promises_exist() {
        let promises =
            file(PROMISES, "P1 `engine::one_fetch`, `Broker::token`\nP2 `engine::none`\n");
        let files = [file("a.rs", "fn one_fetch() {}")];
        let findings = named_tests(&promises, &files);
        assert_eq!(findings, [Finding::new(PROMISES, 2, "no test `engine::none` exists")]);
    }

    #[test]
    fn planted_bugs_and_promises_name_each_other() {
        let files = [file("planted/no-recheck.patch", ""), file("planted/lost-put.patch", "")];
        let promises = file(PROMISES, "`no-recheck`\n`planted/gone.patch`\n");
        let paths: Vec<String> =
            planted_bugs(&promises, &files).into_iter().map(|finding| finding.path).collect();
        assert_eq!(paths, ["planted/lost-put.patch", PROMISES]);
    }

    #[test]
    fn the_test_of_a_planted_bug_stands_in_the_promises() {
        let patch = file("planted/lost-put.patch", "# bug: b\n# test: a::b\n--- a/x\n");
        let promises = file(PROMISES, "`lost-put`, `a::bc`\n");
        let findings = planted_bugs(&promises, std::slice::from_ref(&patch));
        assert_eq!(
            findings,
            [Finding::new(&patch.path, 2, format!("{PROMISES} does not name its test as `a::b`"))]
        );
        let promises = file(PROMISES, "`lost-put`, `a::b`\n");
        assert_eq!(planted_bugs(&promises, &[patch]), []);
    }

    #[test]
    fn a_document_is_finished() {
        let text = "# A\n\nnumbers: (to be filled in)\n";
        let lines: Vec<usize> =
            unfinished(&file("a.md", text)).into_iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [3]);
        assert_eq!(unfinished(&file("a.rs", text)), []);
    }

    #[test]
    fn a_document_that_is_named_exists() {
        let files = [
            file("docs/guide.md", "see sibling.md, docs/other.md."),
            file("docs/sibling.md", "https://example.com/far.md and *.md"),
        ];
        let findings: Vec<Finding> =
            files.iter().flat_map(|file| named_documents(file, &files)).collect();
        assert_eq!(
            findings,
            [Finding::new("docs/guide.md", 1, "there is no document `docs/other.md`")]
        );
    }
}
