"""Text -> Model -> Recurrence."""
