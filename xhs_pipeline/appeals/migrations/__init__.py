"""The steps that bring an appeals database to today's tables. Applied by AppealStore.open; a published step never changes."""
