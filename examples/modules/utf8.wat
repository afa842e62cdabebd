;; Written by hand: tells whether bytes are UTF-8. The host writes them into the exported memory.
(module
  (memory (export "memory") 1)

  ;; Returns -1 if the $size bytes at $start are UTF-8. Otherwise returns how far behind $start the
  ;; first sequence begins that is not: an overlong form, a surrogate, a number above U+10FFFF, or
  ;; what is cut off or misplaced.
  (func (export "check") (param $start i32) (param $size i32) (result i32)
    (local $at i32) (local $sequence i32) (local $end i32) (local $byte i32)
    (local $rest i32) (local $low i32) (local $high i32)
    (local.set $at (local.get $start))
    (local.set $end (i32.add (local.get $start) (local.get $size)))
    (block $bad
      (loop $next
        (if (i32.eq (local.get $at) (local.get $end)) (then (return (i32.const -1))))
        (local.set $sequence (local.get $at))
        (local.set $byte (i32.load8_u (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $byte) (i32.const 0x80)))

        ;; 0x80 to 0xC1 begin nothing, nor do 0xF5 and above.
        (br_if $bad (i32.lt_u (local.get $byte) (i32.const 0xC2)))
        (br_if $bad (i32.gt_u (local.get $byte) (i32.const 0xF4)))
        (local.set $rest
          (i32.add (i32.const 1)
            (i32.add
              (i32.ge_u (local.get $byte) (i32.const 0xE0))
              (i32.ge_u (local.get $byte) (i32.const 0xF0)))))

        ;; The second byte goes from 0x80 to 0xBF, except after four of the first ones.
        (local.set $low (i32.const 0x80))
        (local.set $high (i32.const 0xBF))
        (if (i32.eq (local.get $byte) (i32.const 0xE0)) (then (local.set $low (i32.const 0xA0))))
        (if (i32.eq (local.get $byte) (i32.const 0xED)) (then (local.set $high (i32.const 0x9F))))
        (if (i32.eq (local.get $byte) (i32.const 0xF0)) (then (local.set $low (i32.const 0x90))))
        (if (i32.eq (local.get $byte) (i32.const 0xF4)) (then (local.set $high (i32.const 0x8F))))
        (loop $following
          (br_if $bad (i32.eq (local.get $at) (local.get $end)))
          (local.set $byte (i32.load8_u (local.get $at)))
          (br_if $bad (i32.lt_u (local.get $byte) (local.get $low)))
          (br_if $bad (i32.gt_u (local.get $byte) (local.get $high)))
          (local.set $low (i32.const 0x80))
          (local.set $high (i32.const 0xBF))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (local.set $rest (i32.sub (local.get $rest) (i32.const 1)))
          (br_if $following (local.get $rest)))
        (br $next)))
    (i32.sub (local.get $sequence) (local.get $start))))
