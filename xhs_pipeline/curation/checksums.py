"""Checksums of card numbers."""


def luhn_is_valid(number: str) -> bool:
    """Luhn's checksum (ISO/IEC 7812-1, annex B), of a card: 15 to 19 digits."""
    doubled = [int(digit) * (2 if index % 2 else 1) for index, digit in enumerate(reversed(number))]
    return (
        15 <= len(number) <= 19
        and len(set(number)) > 1
        and sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0
    )


def id_card_is_valid(number: str) -> bool:
    """Date and checksum of an 18-character resident identity number (GB 11643-1999, ISO 7064 MOD 11-2)."""
    year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
    if not (1900 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31):
        return False
    total = sum(int(digit) * (1 << (17 - index)) for index, digit in enumerate(number[:17]))
    return number[17] == "10x98765432"[total % 11]
