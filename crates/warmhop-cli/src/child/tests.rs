//! The process side of a child.

use super::*;

#[tokio::test]
async fn lines_are_cut_at_their_bound_and_only_the_last_are_kept() {
    let tail = Tail::default();
    let mut output = Vec::new();
    for number in 0..30 {
        output.extend_from_slice(format!("line {number}\r\n").as_bytes());
    }
    output.extend(std::iter::repeat_n(b'x', LINE_BYTES_MAX + 10_000));
    output.extend_from_slice(b"\n\xff\x1b[31mred\nunfinished");
    read_output(output.as_slice(), "stdout", AppName::new("shop").unwrap(), Arc::clone(&tail))
        .await;
    let lines = tail_lines(&tail);
    assert_eq!(lines.len(), TAIL_LINES);
    assert_eq!(lines[0], "line 13");
    assert_eq!(lines[16], "line 29");
    assert_eq!(lines[17], format!("{} … (cut)", "x".repeat(LINE_BYTES_MAX)));
    assert_eq!(lines[18], "\u{fffd}red");
    assert_eq!(lines[19], "unfinished");
}

#[test]
fn of_an_escape_sequence_nothing_is_left_in_the_log() {
    let printed = "\u{1b}]0;EVIL\u{7}\u{1b}[2J\u{1b}[31mred\u{1b}[0m\tover\u{8}\r";
    assert_eq!(without_controls(printed), "red\tover");
    assert_eq!(without_controls("plain [31m text"), "plain [31m text");
}

#[test]
fn ports_given_out_lately_are_not_given_out_again() {
    let mut ports: Vec<u16> = (0..RECENT_PORTS / 2).map(|_| free_port().unwrap()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), RECENT_PORTS / 2);
}

#[test]
fn a_program_is_looked_for_where_the_guard_will_look() {
    let dir = Path::new("/");
    assert!(find_program("sh", dir, None).is_ok());
    assert_eq!(find_program("bin/sh", dir, None), Ok(PathBuf::from("/bin/sh")));
    assert_eq!(find_program("/bin/sh", dir, None), Ok(PathBuf::from("/bin/sh")));
    let only_etc = "/etc".to_owned();
    let blamed = |program: &str, dir: &Path, path: Option<&String>| {
        let missing = find_program(program, dir, path).unwrap_err();
        (missing.key, missing.what)
    };
    assert_eq!(
        blamed("sh", dir, Some(&only_etc)),
        ("run", "there is no program \"sh\" in PATH".into())
    );
    assert_eq!(
        blamed("etc/passwd", dir, None),
        ("run", "there is no executable file /etc/passwd".into()),
        "a file that may not be executed is no program"
    );
    let nowhere = Path::new("/no/such/folder");
    assert_eq!(
        blamed("sh", nowhere, None),
        ("dir", "there is no folder /no/such/folder to run \"sh\" in".into())
    );
    assert!(find_program("", dir, None).is_err());
}
