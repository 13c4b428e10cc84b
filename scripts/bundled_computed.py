"""Conversations whose numbers are computed, in the written format of ``bundled/*.txt``.

Every table is spelled out and every phrasing belongs to one entry: nothing is drawn at random, so
the same text comes out of every Python version.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from fractions import Fraction


def number(value: float, digits: int = 2) -> str:
    """Thousands separated; at most *digits* decimals, none of them a trailing zero."""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def price(value: float) -> str:
    """Cents only where there are some."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def written(day: datetime.date) -> str:
    """The day without the zero that ``%d`` puts before it."""
    return f"{day.day} {day:%B %Y}"


def joined(*turns: str) -> str:
    """One conversation of the written format; empty turns are left out."""
    return "\n".join(turn for turn in turns if turn)


def products() -> Iterator[str]:
    """Multiplications, taken apart at the tens."""
    english = [
        (23, 17, "What is 23 times 17?"),
        (48, 36, "Multiply 48 by 36 for me, please."),
        (125, 64, "125 × 64 = ?"),
        (307, 29, "A hall has 29 rows of 307 seats. How many seats is that?"),
    ]
    for a, b, question in english:
        tens, ones = b // 10 * 10, b % 10
        yield joined(
            f"::user {question}",
            f"::think\nSplit {b} into {tens} and {ones}: {a} × {tens} = {a * tens}; "
            f"{a} × {ones} = {a * ones}. The sum is {a * b}.",
            f"::assistant {a} × {b} = {a * tens:,} + {a * ones:,} = **{a * b:,}**.",
        )
    chinese = [
        (56, 42, "56乘以42等于多少？"),
        (88, 75, "一盒粉笔75支，88盒一共多少支？"),
        (219, 13, "219×13，请写出过程。"),
    ]
    for a, b, question in chinese:
        tens, ones = b // 10 * 10, b % 10
        yield joined(
            f"::user {question}",
            f"::think\n把 {b} 拆成 {tens} 和 {ones}，分别相乘再相加，得 {a * b}。",
            f"::assistant {a} × {tens} = {a * tens}，{a} × {ones} = {a * ones}，合计 **{a * b}**。",
        )


def discounts() -> Iterator[str]:
    """Percentages off and on top."""
    for full, percent, goods in [
        (80, 15, "a rucksack"),
        (249, 30, "a pair of skis"),
        (1250, 12, "an office chair"),
    ]:
        off = full * percent / 100
        yield joined(
            f"::user There is {percent} % off {goods} that costs {price(full)} euros. "
            "What do I pay?",
            f"::assistant {percent} % of {price(full)} is {price(off)}, so you pay "
            f"**{price(full - off)} euros**.",
        )
    for net, rate in [(400, 19), (65, 7), (1180, 21)]:
        gross = net * (100 + rate) / 100
        yield joined(
            f"::user Add {rate} % VAT to {price(net)}.",
            f"::think\n{price(net)} × {1 + rate / 100:.2f} = {price(gross)}.",
            f"::assistant {price(gross)} (of which {price(gross - net)} is the tax).",
        )


def units() -> Iterator[str]:
    """Conversions by a factor, each with another question and another answer."""
    km, lb, cm, gallon, foot, knot = 1.609344, 0.45359237, 2.54, 3.785411784, 0.3048, 1.852
    yield joined(
        "::user My car's display says 62 miles to go. In kilometres?",
        f"::assistant About {62 * km:.0f} km (62 × 1.609 = {62 * km:.1f}).",
    )
    yield joined(
        "::user Convert a marathon, 42.195 km, to miles.",
        f"::assistant {42.195 / km:.2f} miles.",
    )
    yield joined(
        "::user The airline allows 50 lb. How many kilos may my suitcase have?",
        f"::think\n50 × 0.4536 = {50 * lb:.2f}. Rounding up would be over the limit.",
        f"::assistant {50 * lb:.2f} kg; pack for 22.5 and you are safe.",
    )
    yield joined(
        "::user A 27-inch monitor: what is the diagonal in centimetres?",
        f"::assistant 27 × 2.54 = **{number(27 * cm)} cm**.",
    )
    yield joined(
        "::user I'm 5 foot 9. What's that in metres?",
        f"::think\n5 ft 9 in = 69 in. 69 × 2.54 = {69 * cm:.2f} cm.",
        f"::assistant {69 * cm / 100:.2f} m.",
    )
    yield joined(
        "::user How many litres are 12 US gallons of petrol?",
        f"::assistant {12 * gallon:.1f} litres (3.785 litres each).",
    )
    yield joined(
        "::user 一架飞机在35000英尺高度巡航，合多少米？",
        f"::think\n1 英尺 = 0.3048 米。35000 × 0.3048 = {35000 * foot:.0f}。",
        f"::assistant 35000 × 0.3048 = {35000 * foot:,.0f} 米，大约一万零七百米。",
    )
    yield joined(
        "::user 船速18节是每小时多少公里？",
        f"::assistant 一节等于每小时 1.852 公里，18 × 1.852 ≈ {18 * knot:.1f} 公里。",
    )
    for celsius, about in [(-40, "the same on both scales"), (37, "body heat"), (100, "boiling")]:
        yield joined(
            f"::user {celsius} degrees Celsius in Fahrenheit, please.",
            f"::assistant {celsius} × 9/5 + 32 = {number(celsius * 9 / 5 + 32, 1)} °F ({about}).",
        )


def days() -> Iterator[str]:
    """Distances between dates, and weekdays."""
    spans = [
        (datetime.date(2024, 2, 10), datetime.date(2024, 3, 15), "my visa runs"),
        (datetime.date(2023, 11, 28), datetime.date(2024, 1, 6), "the exhibition is open"),
        (datetime.date(2025, 4, 1), datetime.date(2025, 9, 30), "the summer term lasts"),
    ]
    for first, last, what in spans:
        gap = (last - first).days
        yield joined(
            f"::user How many days are there from {written(first)} to {written(last)}? "
            f"That is how long {what}.",
            f"::think\nCount the days between: {gap}. Counting both ends: {gap + 1}.",
            f"::assistant {gap} days from one date to the other, or {gap + 1} if both the first "
            "and the last day count.",
        )
    for day, event in [
        (datetime.date(2000, 1, 1), "The year 2000 began"),
        (datetime.date(1815, 6, 18), "The battle of Waterloo was fought on 18 June 1815"),
        (datetime.date(2012, 2, 29), "My niece was born on 29 February 2012"),
    ]:
        yield joined(
            f"::user {event}. On which weekday?",
            f"::assistant {written(day)} was a {day:%A}.",
        )
    start = datetime.date(2024, 9, 16)
    later = start + datetime.timedelta(days=100)
    yield joined(
        "::user 从2024年9月16日算起，100天以后是哪一天？",
        f"::think\n9月剩14天，10月31天，11月30天，共75天，再过25天：12月{later.day}日。",
        f"::assistant 是 {later.year} 年 {later.month} 月 {later.day} 日。",
    )


def bases() -> Iterator[str]:
    """Numbers in other bases."""
    for value, question in [
        (202, "Write 202 in binary."),
        (77, "What is 77 in base 2, and how do I get there by hand?"),
    ]:
        halves = []
        rest = value
        while rest:
            halves.append(f"{rest} → {rest % 2}")
            rest //= 2
        yield joined(
            f"::user {question}",
            "::think\nHalve and note the remainders: " + ", ".join(halves) + ". Read backwards.",
            f"::assistant {value} = **{value:b}** in binary. Halve again and again, note each "
            "remainder, and read the remainders from the last to the first.",
        )
    yield joined(
        "::user What colour is #3C6E71 in decimal RGB?",
        f"::assistant rgb({0x3C}, {0x6E}, {0x71}), a muted teal.",
    )
    yield joined(
        "::user Octal 755 in decimal?",
        f"::assistant 7 × 64 + 5 × 8 + 5 = {0o755}.",
    )
    yield joined(
        "::user 十六进制的 FF 是十进制的多少？",
        f"::assistant 15 × 16 + 15 = {0xFF}。",
    )


def factors_of(value: int) -> list[int]:
    """Prime factors, smallest first, by trial division."""
    found, divisor = [], 2
    while value > 1:
        while value % divisor == 0:
            found.append(divisor)
            value //= divisor
        divisor += 1
    return found


def divisors() -> Iterator[str]:
    """Prime factors, common divisors and multiples."""
    for value, question in [
        (360, "Factor 360 into primes."),
        (1001, "Which primes divide 1001?"),
        (2310, "What's special about the number 2310?"),
    ]:
        primes = factors_of(value)
        product = " × ".join(map(str, primes))
        extra = " It is the product of the first five primes." if value == 2310 else ""
        yield joined(
            f"::user {question}",
            f"::think\nDivide by 2, 3, 5, 7, ... in turn: {value} = {product}.",
            f"::assistant {value} = {product}.{extra}",
        )
    for a, b in [(84, 126), (391, 299)]:
        steps, x, y = [], max(a, b), min(a, b)
        while y:
            steps.append(f"{x} = {x // y} × {y} + {x % y}")
            x, y = y, x % y
        yield joined(
            f"::user Find the greatest common divisor of {a} and {b} with Euclid's algorithm.",
            "::assistant " + "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1)),
            f"\nThe last divisor is the answer: **{x}**.",
        )
    yield joined(
        "::user Bus A leaves every 12 minutes and bus B every 18. Both leave at 9:00. "
        "When do they leave together next?",
        f"::think\nlcm(12, 18) = {math.lcm(12, 18)}. 9:00 + 36 min = 9:36.",
        "::assistant At 9:36, since 36 is the smallest number that 12 and 18 both divide.",
    )
    third = Fraction(2, 3) + Fraction(5, 8)
    yield joined(
        "::user 2/3 加 5/8 是多少？",
        f"::assistant 通分：16/24 + 15/24 = **{third.numerator}/{third.denominator}**。",
    )


def lists() -> Iterator[str]:
    """Sorting, counting and averages of small lists."""
    marks = [14, 9, 17, 12, 17, 11, 18]
    ordered = sorted(marks)
    yield joined(
        "::user Median of 14, 9, 17, 12, 17, 11 and 18?",
        f"::think\nSorted: {', '.join(map(str, ordered))}. The fourth of seven: {ordered[3]}.",
        f"::assistant Sorted: {', '.join(map(str, ordered))}. The middle one is **{ordered[3]}**.",
    )
    rain = [3.2, 0.0, 12.4, 7.1, 0.3]
    yield joined(
        "::user Rain this week in mm: 3.2, 0, 12.4, 7.1, 0.3. Total and daily average?",
        f"::assistant Total {sum(rain):.1f} mm, on average {sum(rain) / len(rain):.1f} mm a day.",
    )
    names = ["Ying", "Åsa", "Bruno", "ana", "Zoë", "Émile"]
    yield joined(
        "::user What does Python's `sorted` make of these names, and why? " + ", ".join(names),
        f"::assistant ```python\n{sorted(names)!r}\n```\n\nIt compares code points: capitals come "
        "before small letters, and letters with accents after all plain ones. For an order that "
        "people expect, use a collation, for example `locale.strxfrm` as the key.",
    )
    sentence = "The quick brown fox jumps over the lazy dog near the old bridge"
    words = sentence.lower().split()
    yield joined(
        f'::user Count the words, and how often "the" occurs: "{sentence}"',
        f'::assistant {len(words)} words; "the" occurs {words.count("the")} times.',
    )
    yield joined(
        "::user 小明五次测验的成绩是 88、92、79、95、91，平均分是多少？",
        f"::think\n和：88+92+79+95+91={88 + 92 + 79 + 95 + 91}，除以 5。",
        f"::assistant 总分 {88 + 92 + 79 + 95 + 91}，除以 5，平均分是 "
        f"**{(88 + 92 + 79 + 95 + 91) / 5:g}**。",
    )


def quadratics() -> Iterator[str]:
    """Equations with whole roots, each solved another way."""
    for p, q, question in [
        (3, -8, "Solve x² + 5x − 24 = 0."),
        (4, 4, "How many solutions has x² − 8x + 16 = 0?"),
    ]:
        disc = (p + q) ** 2 - 4 * p * q
        roots = sorted({p, q})
        told = " and ".join(f"x = {r}".replace("-", "−") for r in roots)
        yield joined(
            f"::user {question}",
            f"::think\nThe discriminant is {disc}; the square root is {math.isqrt(disc)}.",
            f"::assistant The discriminant is {disc}, so there {'is' if disc == 0 else 'are'} "
            f"{'one solution' if disc == 0 else 'two solutions'}: {told}.",
        )


def money() -> Iterator[str]:
    """Compound interest, shares and trips."""
    grown = 2000 * 1.03**10
    yield joined(
        "::user 2,000 euros at 3 % interest for ten years, compounded yearly. What do I have?",
        f"::think\n2000 × 1.03^10 = 2000 × {1.03**10:.5f} = {grown:.2f}.",
        f"::assistant 2,000 × 1.03¹⁰ ≈ **{grown:,.2f} euros**. Simple interest would give 2,600; "
        f"the other {grown - 2600:.2f} are interest on interest.",
    )
    yield joined(
        "::user At 4 % a year, after how many years does my money double?",
        f"::think\nln 2 / ln 1.04 = {math.log(2) / math.log(1.04):.2f}. Rule of 72: 18.",
        f"::assistant After about {math.log(2) / math.log(1.04):.1f} years. The rule of thumb "
        "gives 72 / 4 = 18.",
    )
    yield joined(
        "::user Three friends paid 48, 30 and 12 euros for a trip. Who owes whom?",
        "::think\nTotal 90, each 30. First paid 18 too much, second just right, third 18 too few.",
        "::assistant The total is 90, so each share is 30. The third friend gives 18 euros to the "
        "first; the second has paid just right.",
    )
    yield joined(
        "::user We drove 312 km in 3 hours and 15 minutes. Average speed?",
        f"::assistant {312 / 3.25:.0f} km/h (312 / 3.25).",
    )
    yield joined(
        "::user 甲从A地步行，每小时5公里；乙晚1小时骑车追，每小时15公里。几小时后追上？",
        "::think\n差 5 公里，速度差 10 公里每小时，0.5 小时。",
        "::assistant 乙出发时甲已走 5 公里，速度差是每小时 10 公里，5 ÷ 10 = 0.5 小时后追上。",
    )


def expressions() -> Iterator[str]:
    """Python expressions, with the value that Python itself gives."""
    asked: list[tuple[str, str, object, str]] = [
        (
            "What does `{}` give in Python?",
            "0.1 + 0.2",
            0.1 + 0.2,
            "Binary floats can't hold 0.1 exactly; the error shows here.",
        ),
        (
            "Python: value of `{}`?",
            "round(2.5)",
            round(2.5),
            "Ties go to the even neighbour.",
        ),
        (
            "`{}` 在 Python 里的结果是什么？",
            "-7 // 2",
            -7 // 2,
            "整除向下取整，负数也一样。",
        ),
        (
            "Which items does `{}` pick?",
            "[1, 2, 3, 4, 5, 6][1::2]",
            [1, 2, 3, 4, 5, 6][1::2],
            "From index 1 on, every second item.",
        ),
        (
            "I typed `{}` into the Python prompt. What comes back?",
            "'banana'.count('an')",
            "banana".count("an"),
            "Matches that don't overlap are counted.",
        ),
        (
            "Does `{}` return the keys or the values?",
            "sorted({'b': 1, 'a': 2})",
            sorted({"b": 1, "a": 2}),
            "Going through a dict gives its keys, here in order.",
        ),
        (
            "Is `{}` a bool or a string?",
            "bool([]) or 'empty'",
            bool([]) or "empty",
            "A string: `or` returns its last operand itself.",
        ),
        (
            "为什么 `{}` 不等于 5？",
            "len('naïve'.encode('utf-8'))",
            len("naïve".encode()),
            "字母 ï 在 UTF-8 里占两个字节。",
        ),
        (
            "`{}`: what does join do with a string?",
            "'-'.join('wxyz')",
            "-".join("wxyz"),
            "A string is a sequence of its characters, so each one is joined.",
        ),
        (
            "`{}` 返回什么？",
            "divmod(100, 7)",
            divmod(100, 7),
            "商和余数一起返回：100 = 14 × 7 + 2。",
        ),
    ]
    for question, code, value, reason in asked:
        yield joined(
            f"::user {question.format(code)}",
            f"::assistant `{value!r}`. {reason}",
        )


def tool_sums() -> Iterator[str]:
    """Tool calls with computed results, one call and several."""
    for expression, value, question in [
        ("1849 * 27", 1849 * 27, "Please compute 1849 times 27 exactly."),
        ("(17.5 + 22.25) / 2", (17.5 + 22.25) / 2, "Average of 17.5 and 22.25?"),
        ("2 ** 40", 2**40, "How many bytes are in a tebibyte?"),
        ("365 * 24", 365 * 24, "平年一共有多少小时？"),
    ]:
        call = f'::call calculate {{"expression": "{expression}"}}'
        end = "。" if "平年" in question else "."
        yield joined(
            "::tools calculate",
            f"::user {question}",
            call,
            f"::result {value}",
            f"::assistant {value:,}{end}",
        )
    rows = [("Anna", 31.5), ("Bao", 40.0), ("Chidi", 28.25)]
    total = sum(hours for _, hours in rows)
    listed = ", ".join(f'{{"name": "{name}", "hours": {hours}}}' for name, hours in rows)
    yield joined(
        "::tools run_sql calculate",
        "::user How many hours did the team book in week 23? Table hours(name, week, hours).",
        '::call run_sql {"query": "SELECT name, SUM(hours) AS hours FROM hours WHERE week = 23 '
        'GROUP BY name ORDER BY name"}',
        f"::result [{listed}]",
        '::call calculate {"expression": "31.5 + 40.0 + 28.25"}',
        f"::result {total}",
        f"::assistant {total} hours in all: Anna 31.5, Bao 40, Chidi 28.25.",
    )
    a, b = 100 * 1.609344, 55 * 0.45359237
    yield joined(
        "::tools convert",
        "::user 100 miles in km and 55 pounds in kg, please.",
        '::call convert {"value": 100, "from": "mile", "to": "km"}',
        '::call convert {"value": 55.0, "from": "lb", "to": "kg"}',
        f'::result {{"value": {a:.4f}}}',
        f'::result {{"value": {b:.4f}}}',
        f"::assistant 100 miles are {a:.1f} km, and 55 pounds are {b:.1f} kg.",
    )


def chains() -> Iterator[str]:
    """Several turns, each number resting on the one before."""
    turns = ["::user Let's play: I say an operation, you keep the total. Start: 12."]
    turns.append("::assistant 12. Go on!")
    for asked, total in [
        ("times 4", 12 * 4),
        ("minus 9", 12 * 4 - 9),
        ("half of that", (12 * 4 - 9) / 2),
    ]:
        turns += [f"::user {asked}", f"::assistant {number(total)}"]
    yield joined(*turns)
    width, height = 3.4, 2.5
    area = width * height
    yield joined(
        f"::user A wall is {width} m wide and {height} m high. What's its area?",
        f"::assistant {number(area)} m².",
        "::user There's a door of 0.9 by 2 m in it.",
        f"::think\nDoor 1.8 m². {number(area)} − 1.8 = {number(area - 1.8)}.",
        f"::assistant Without the door, {number(area - 1.8)} m² remain.",
        "::user One litre of paint covers 8 m². Two coats?",
        f"::think\n2 × {number(area - 1.8)} = {number(2 * (area - 1.8))}; divided by 8: "
        f"{number(2 * (area - 1.8) / 8)} litres.",
        f"::assistant About {number(2 * (area - 1.8) / 8, 1)} litres, so a tin of two "
        "litres is enough.",
    )


def computed() -> list[str]:
    """All computed conversations as written text, in a fixed order."""
    kinds = (
        products,
        discounts,
        units,
        days,
        bases,
        divisors,
        lists,
        quadratics,
        money,
        expressions,
        tool_sums,
        chains,
    )
    return [text for kind in kinds for text in kind()]
