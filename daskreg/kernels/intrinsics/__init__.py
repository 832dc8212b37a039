"""Operations that are one instruction on a GPU, each with the plain formula that says what it means."""
