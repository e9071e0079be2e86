#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    warmhop::fuzzing::sessions(input);
});
